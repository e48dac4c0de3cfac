"""From raw video to a curated set of clips: stages of scores and cuts over units of work, duplicates, late selection."""

from sora.system.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __file__)
