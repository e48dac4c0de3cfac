"""Asks servers over HTTP within limits: captioners, guard models and prompt expansion."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
