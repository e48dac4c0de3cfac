"""Clip sizes and lengths that a causal VAE and a model's patches accept, and the nearest accepted ones to a user's request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", int, np.ndarray)
Triple = tuple[int, int, int]

MOST_FRAMES = 1_000_000
PIXELS = re.compile(r"(\d{1,9})x(\d{1,9})")


@dataclass(frozen=True)
class Geometry:
    """Converts the size of a clip between frames and pixels, latents, and patches.

    A causal VAE encodes the first frame as one latent frame, and every `stride[0]` frames after it as one more. So t latent frames stand
    for 1 + (t - 1) * stride[0] frames. stride: downsampling factors of the VAE in time, rows and columns.
    patch: size of a patch in latent frames, rows and columns; (1, 1, 1) for the VAE alone.
    """

    stride: Sequence[int]
    patch: Sequence[int] = (1, 1, 1)

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a patch in pixels; the height and width of a clip must be multiples of them."""
        return self.stride[1] * self.patch[1], self.stride[2] * self.patch[2]

    def decoded(self, latent: Count) -> Count:
        """Number of frames that `latent` latent frames decode to."""
        return 1 + (latent - 1) * self.stride[0]

    def most_frames(self, frames: Count) -> Count:
        """Largest number of frames up to `frames` that divides into patches; 0 if there is none."""
        latent = (1 + (frames - 1) // self.stride[0]) // self.patch[0] * self.patch[0]
        return (latent > 0) * self.decoded(latent)

    def patches(self, frames: Count) -> Count:
        """Number of patches in time of a clip whose length is `most_frames(frames)`."""
        return (frames + self.stride[0] - 1) // self.stride[0] // self.patch[0]

    def least_frames(self, frames: int) -> int:
        """Smallest number of frames, at least `frames`, that divides into patches."""
        return self.decoded(-(-(1 + -(-(frames - 1) // self.stride[0])) // self.patch[0]) * self.patch[0])

    def nearest_frames(self, seconds: float, fps: float) -> int:
        """Number of frames nearest to `seconds` at `fps` that divides into patches; for 0 seconds, the shortest clip."""
        if seconds < 0 or fps <= 0:
            raise ValueError(f"seconds={seconds} at fps={fps}: seconds must be at least 0 and fps above 0")
        if not seconds * fps <= MOST_FRAMES:
            raise ValueError(f"seconds={seconds:g} at fps={fps:g} are more than {MOST_FRAMES:,} frames; lower one of them")
        latent = 1 + max(seconds * fps - 1, 0) / self.stride[0]
        return self.decoded(max(round(latent / self.patch[0]), 1) * self.patch[0])

    @property
    def in_time(self) -> Geometry:
        """Geometry with the same stride and patch in time, and 1 in rows and columns."""
        return Geometry((self.stride[0], 1, 1), (self.patch[0], 1, 1))

    def holds(self, frames: int, height: int, width: int) -> bool:
        """Whether a clip of this size holds at least one patch."""
        return min(self.largest(frames, height, width)) > 0

    def largest(self, frames: Count, height: Count, width: Count) -> tuple[Count, Count, Count]:
        """Frames, height and width of the largest crop of a clip that divides into patches; 0 along an axis that is too short."""
        rows, columns = self.block
        return self.most_frames(frames), height // rows * rows, width // columns * columns

    def latent_shape(self, frames: int, height: int, width: int) -> Triple:
        """Latent frames, rows and columns of a clip. Raises ValueError if its size does not fit the stride."""
        time, rows, columns = self.stride
        if frames < 1 or (frames - 1) % time:
            near = 1 + max(frames - 1, 0) // time * time
            raise ValueError(f"frames={frames} is not 1 + a multiple of {time}; crop the clip to {near} or change vae.stem or vae.strides")
        if height < 1 or width < 1 or height % rows or width % columns:
            raise ValueError(f"frames of {width}x{height} do not divide into {columns}x{rows} blocks; change the clip's size")
        return 1 + (frames - 1) // time, height // rows, width // columns

    def pixels(self, t: Count, h: Count, w: Count) -> tuple[Count, Count, Count]:
        """Frames, height and width of a clip of t x h x w patches."""
        rows, columns = self.block
        return self.decoded(t * self.patch[0]), h * rows, w * columns


def exact(text: str) -> bool:
    """Whether a size is given in pixels (WIDTHxHEIGHT) and not as an aspect ratio."""
    return PIXELS.fullmatch(text.strip()) is not None


def size_of(text: str, *, area: float, multiple: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a size given as an aspect ratio or in pixels.

    text: an aspect ratio, width to height, such as "9:16", which gives about `area` pixels; or "WIDTHxHEIGHT", which is taken exactly.
    multiple: factors that height and width must be multiples of (VAE stride times patch size).
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


def _near(pixels: float, multiple: int) -> int:
    return max(round(pixels / multiple), 1) * multiple
