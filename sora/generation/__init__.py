"""The tasks: text to video, and clips that begin with given frames, at any size and length, packed as in training."""
