"""The denoising network: the DiT, its blocks, layers and attention, and published networks built from the same parts."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
