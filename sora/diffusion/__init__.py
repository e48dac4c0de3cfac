"""Paths between data and noise, densities of noise levels, objectives, samplers and guidance; independent of the network."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
