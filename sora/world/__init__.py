"""The built-in world of shapes in motion: procedurally rendered clips with exact captions and ground truth."""
