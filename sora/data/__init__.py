"""Shards, their index, decoding, the plan of every step, and loading by it."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
