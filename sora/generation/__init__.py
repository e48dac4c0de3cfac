"""Text-to-video sampling, and continuation of given frames, at any size and length, packed as in training."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
