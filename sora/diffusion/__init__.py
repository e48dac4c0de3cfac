"""Paths between data and noise, densities of noise levels, objectives, samplers and guidance. Knows no network."""
