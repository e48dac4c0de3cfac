"""Text encoders, the cache of their token states, packing, and the choice and dropping of captions."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
