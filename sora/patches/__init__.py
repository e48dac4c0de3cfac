"""Latents <-> spacetime patches <-> packed tokens."""

from sora.patches.packing import frame_times, pack, patch_times, positions, unpack
from sora.patches.patchifier import Patchifier

__all__ = ["Patchifier", "frame_times", "pack", "patch_times", "positions", "unpack"]
