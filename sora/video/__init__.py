"""Reads videos and images, in guarded processes, and writes videos."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
