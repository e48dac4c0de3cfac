"""Frames to latents and back: a causal video VAE, its objective, its whitening and its artefact on disk."""
