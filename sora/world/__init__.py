"""The built-in world of shapes in motion: procedurally rendered clips with exact captions and ground truth."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
