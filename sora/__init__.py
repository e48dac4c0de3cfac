"""sora: an open training framework for spacetime-patch video diffusion transformers."""

__version__ = "0.1.0"

import os as _os

from sora.system.lazy_names import lazy_names as _lazy_names
from sora.system.processes import reset_interrupt as _reset_interrupt

_reset_interrupt()
if _os.environ.get("SORA_OWN"):  # what comes pickled from another process may be of the user's own modules
    from sora.system.own_modules import install as _install

    _install()

__getattr__, __dir__ = _lazy_names(__name__, __file__)
