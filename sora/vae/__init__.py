"""Frames to latents and back: a causal video VAE, its objective, its whitening and its artefact on disk."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
