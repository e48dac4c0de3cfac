"""Metrics as pure functions with thin torchmetrics classes: distances between distributions, reconstruction, prompt adherence."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
