"""What blocks are made of: norms, MLPs, modulation, positions."""
