"""A run is a folder: its configuration, its checkpoints, its log."""
