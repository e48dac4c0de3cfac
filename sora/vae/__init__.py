"""A causal video VAE, which encodes frames to latents and decodes them; its objective, its whitening and its files on disk."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
