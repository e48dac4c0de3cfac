"""Lightning's view of the framework: runs, checkpoints, modules, callbacks, optimisers. No mathematics."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
