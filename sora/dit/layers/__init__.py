"""Layers of the network: norms, MLPs, modulation, positions, clip shapes and registers."""
