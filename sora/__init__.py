"""sora: an open training framework for spacetime-patch video diffusion transformers."""

__version__ = "0.1.0"
