"""Datasets: shards, their index, the plan of every step, and the loading of a plan's steps."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
