"""Stored videos for a plan: each at the largest size of a ladder that it reaches, in its own aspect ratio, in windows of a frame rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from sora.data.plan.clips import ClipLimits, Cut, Measured, gathered
from sora.data.plan.steps import Crop
from sora.patches.geometry import Geometry
from sora.system.draws import generator, sample_id


class VideoColumns(NamedTuple):
    """The columns of one dataset's stored clips; they may be memory-mapped. fps: frames a second."""

    frames: Int[np.ndarray, "n"]
    heights: Int[np.ndarray, "n"]
    widths: Int[np.ndarray, "n"]
    fps: Float[np.ndarray, "n"]


class _Sized(NamedTuple):
    """The sizes of some clips. had: frames at the plan's rate. frames: of the window. sizes: (H, W). grids, reasons: see `Measured`."""

    had: np.ndarray
    frames: np.ndarray
    sizes: np.ndarray
    grids: np.ndarray
    reasons: np.ndarray


class FrameClips:
    """Windows of stored videos at a frame rate and a size.

    areas: the ladder, in pixels of a frame; a clip gets the largest step that it reaches, never more than it has. Its sides are rounded to
    whole patches and the remainder of less than one patch is cut off: nothing is stretched or enlarged. rate: the most frames a second
    (None: each clip's own); slower clips keep theirs. geometry: the VAE's and the patches' sizes, into which all lengths divide. A clip
    longer than `ClipLimits.frames` gives a window that begins anywhere in it, drawn anew each epoch. The frames of `Item.crop` count at
    this rate; `ClipLimits.area` bounds the ladder.
    """

    reasons = ("", "smaller than the smallest of data.areas", "shorter than one patch", "plan.area allows none of data.areas")

    def __init__(
        self,
        columns: Sequence[VideoColumns],
        *,
        areas: Sequence[int],
        rate: float | None,
        geometry: Geometry,
        fingerprint: str,
        key: Callable[[int], str],
    ) -> None:
        if not areas or min(areas) < 1:
            raise ValueError(f"sizes {list(areas)}: give one area in pixels or more, such as [65536, 147456]")
        if rate is not None and rate <= 0:
            raise ValueError(f"rate={rate} frames a second is not above 0; null keeps the clips' own")
        self.columns, self.areas, self.rate = tuple(columns), np.sort(np.asarray(areas)), rate
        self.geometry, self.fingerprint = geometry, fingerprint
        self.starts = (0, *accumulate(len(each.frames) for each in columns))
        self.key = key

    def measured(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Measured:
        sized = self._sized(rows, limits)
        return Measured(sized.grids, sized.reasons)

    def frames(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        return self._sized(rows, ClipLimits()).had

    def taken(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Int[np.ndarray, "n 3"]:
        sized = self._sized(rows, limits)
        return np.concatenate((sized.frames[:, None], sized.sizes), axis=1)

    def rates(self, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The frames a second at which each clip is shown."""
        fps = np.asarray(self._column("fps", rows), dtype=np.float64)
        return fps if self.rate is None else np.minimum(fps, self.rate)

    def cut(self, rows: Int[np.ndarray, "n"], epochs: Int[np.ndarray, "n"], limits: ClipLimits, *, seed: int) -> list[Cut]:
        sized = self._sized(rows, limits)
        stored = zip(self._column("heights", rows).tolist(), self._column("widths", rows).tolist(), strict=True)
        each = zip(rows.tolist(), epochs.tolist(), sized.had.tolist(), sized.frames.tolist(), sized.sizes.tolist(), stored, strict=True)
        found: list[Cut] = []
        for row, epoch, had, kept, (height, width), box in each:
            start = 0
            if had > kept:
                start = int(generator("window", seed=seed, epoch=epoch, sample=sample_id(self.key(row))).integers(had - kept + 1))
            found.append((Crop(start, kept, 0, 0, *box), (height, width)))
        return found

    def _column(self, name: str, rows: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n"]:
        return gathered([getattr(each, name) for each in self.columns], self.starts, rows)

    def _sized(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> _Sized:
        frames, heights, widths = (np.asarray(self._column(name, rows), dtype=np.int64) for name in ("frames", "heights", "widths"))
        fps = np.asarray(self._column("fps", rows), dtype=np.float64)
        had = np.floor((frames - 1) * (self.rates(rows) / fps) + 1e-6).astype(np.int64) + 1
        wanted = had if limits.frames is None else np.minimum(had, limits.frames)
        kept = self.geometry.most_frames(wanted)
        sides = np.stack((heights, widths), axis=1)
        units = np.array(self.geometry.block)
        areas = self.areas if limits.area is None else self.areas[self.areas <= limits.area]
        step = np.searchsorted(areas, heights * widths, side="right") - 1
        area = areas[np.maximum(step, 0)] if len(areas) else np.zeros(len(rows))
        scale = np.sqrt(area / np.maximum(1, heights * widths))
        cells = np.minimum(np.maximum(1, np.floor(sides * scale[:, None] / units + 0.5)), sides // units).astype(np.int64)
        small = (step < 0) | (cells.min(axis=1) < 1) | (len(areas) == 0)
        grids = np.concatenate((self.geometry.patches(kept)[:, None], cells), axis=1)
        reasons = np.where(small, 1 if len(areas) else 3, np.where(kept < 1, 2, 0)).astype(np.uint8)
        return _Sized(had, kept, cells * units, grids, reasons)
