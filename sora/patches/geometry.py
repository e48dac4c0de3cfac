"""What a user asks for (an aspect ratio, seconds) as what the network can make (rows, columns and frames that fit its strides)."""

from __future__ import annotations

import re
from math import sqrt

MOST_FRAMES = 1_000_000
PIXELS = re.compile(r"(\d{1,9})x(\d{1,9})")


def exact(text: str) -> bool:
    """Whether a size says its pixels, WIDTHxHEIGHT, so that no area is needed."""
    return PIXELS.fullmatch(text.strip()) is not None


def size_of(text: str, *, area: float, multiple: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels for "9:16" (width to height, at about `area` pixels) or "WIDTHxHEIGHT" (exactly).

    multiple: what height and width must divide by, VAE stride times patch size.
    """
    if found := PIXELS.fullmatch(text.strip()):
        width, height = int(found[1]), int(found[2])
        if min(width, height) < 1 or height % multiple[0] or width % multiple[1]:
            near = f"{_near(width, multiple[1])}x{_near(height, multiple[0])}"
            raise ValueError(f"size={text}: width must divide by {multiple[1]} and height by {multiple[0]}; the nearest is {near}")
        return height, width
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?):(\d{1,9}(?:\.\d{1,9})?)", text.strip())
    if not found or min(float(found[1]), float(found[2])) <= 0:
        raise ValueError(f"size={text!r} is neither an aspect ratio such as 16:9 (width:height) nor WIDTHxHEIGHT in pixels")
    ratio = float(found[1]) / float(found[2])
    return _near(sqrt(area / ratio), multiple[0]), _near(sqrt(area * ratio), multiple[1])


def frames_of(seconds: float, fps: float, stride: int, *, patch: int = 1) -> int:
    """The number of frames nearest to `seconds` that a causal VAE of time stride `stride` can decode, 1 + k·stride; 0 seconds is an image.

    patch: latent frames in a patch; the latent frames, 1 + k, divide by it.
    """
    if seconds < 0 or fps <= 0:
        raise ValueError(f"seconds={seconds} at fps={fps}: seconds must be at least 0 and fps above 0")
    if not seconds * fps <= MOST_FRAMES:
        raise ValueError(f"seconds={seconds:g} at fps={fps:g} are more than {MOST_FRAMES:,} frames; lower one of them")
    latent = 1 + max(seconds * fps - 1, 0) / stride
    return 1 + (max(round(latent / patch), 1) * patch - 1) * stride


def _near(pixels: float, multiple: int) -> int:
    return max(round(pixels / multiple), 1) * multiple
