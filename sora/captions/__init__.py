"""New captions for the clips of a dataset: captioners, their answers, checks of what they say, and the set that it becomes."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
