"""Latents <-> spacetime patches <-> packed tokens."""
