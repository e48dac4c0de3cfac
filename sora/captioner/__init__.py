"""A captioning network that this framework trains: clips in, attributes and captions out."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
