"""sora: an open training framework for spacetime-patch video diffusion transformers."""

__version__ = "0.1.0"

from sora.system.processes import reset_interrupt as _reset_interrupt

_reset_interrupt()
