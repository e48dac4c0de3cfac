"""Published backbones: our blocks as each needs them, and key maps between its checkpoints, as diffusers writes them, and ours."""
