"""Published networks: configurations of our blocks, and maps between their checkpoints in the format of diffusers and our parameters."""
