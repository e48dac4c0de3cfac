"""The clips that a plan is made from: columns of numbers, one row per clip of all datasets, and each clip's patches within limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from sora.data.plan.steps import Crop
from sora.tokens import Grid

Cut = tuple[Crop | None, tuple[int, int] | None]


class ClipLimits(NamedTuple):
    """Limits on one clip (None: no limit). frames: longer clips are cut. area: rows x columns of a frame; larger clips are left out."""

    frames: int | None = None
    area: int | None = None


class Measured(NamedTuple):
    """Sizes of clips. grids: patches in time, rows, columns. reasons: 0 for a usable clip, else an index into `ClipTable.reasons`."""

    grids: Int[np.ndarray, "n 3"]
    reasons: UInt8[np.ndarray, "n"]


@runtime_checkable
class ClipTable(Protocol):
    """The clips of all datasets; dataset d has rows starts[d] .. starts[d + 1] - 1. No Python object is held per clip."""

    starts: tuple[int, ...]
    fingerprint: str
    reasons: tuple[str, ...]

    def measured(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Measured: ...

    def frames(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The length of each clip before any limit, in the unit of `ClipLimits.frames`."""
        ...

    def taken(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Int[np.ndarray, "n 3"]:
        """The frames, rows and columns of each clip that are trained on, in the units of `ClipLimits`."""
        ...

    def cut(self, rows: Int[np.ndarray, "n"], epochs: Int[np.ndarray, "n"], limits: ClipLimits, *, seed: int) -> list[Cut]:
        """The box cut from each clip and the size it is scaled to; a pure function of row, epoch, limits and seed."""
        ...

    def key(self, row: int) -> str: ...


class LatentClips:
    """Encoded clips. shapes: for each dataset (clips, 3) latent frames, rows and columns, (0, 0, 0) for a clip without latents; may be
    memory-mapped. patch: the model's patch size. key: gives the name of a row, for errors.

    Sizes are fixed when clips are encoded, so a limit on the area leaves clips out. A limit on the frames keeps the first ones, which a
    causal VAE would have encoded just so from the shorter clip.
    """

    reasons = ("", "larger than plan.area allows", "could not be encoded")

    def __init__(
        self, shapes: Sequence[Int[np.ndarray, "_ 3"]], *, patch: Grid, fingerprint: str, key: Callable[[int], str] | None = None
    ) -> None:
        self.shapes, self.patch, self.fingerprint = tuple(shapes), patch, fingerprint
        self.starts = (0, *accumulate(len(shape) for shape in shapes))
        self._key = key

    def measured(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Measured:
        shapes = np.asarray(gathered(self.shapes, self.starts, rows), dtype=np.int64)
        time = shapes[:, 0] if limits.frames is None else np.minimum(shapes[:, 0], max(limits.frames, self.patch.t))
        grids = np.stack((time // self.patch.t, shapes[:, 1] // self.patch.h, shapes[:, 2] // self.patch.w), axis=1)
        unusable = np.zeros(len(grids), np.uint8)
        if limits.area is not None:
            unusable[shapes[:, 1] * shapes[:, 2] > limits.area] = 1
        unusable[shapes[:, 0] == 0] = 2
        return Measured(grids, unusable)

    def frames(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        return np.asarray(gathered(self.shapes, self.starts, rows)[:, 0], dtype=np.int64)

    def taken(self, rows: Int[np.ndarray, "n"], limits: ClipLimits) -> Int[np.ndarray, "n 3"]:
        return self.measured(rows, limits).grids * np.array(self.patch)

    def cut(self, rows: Int[np.ndarray, "n"], epochs: Int[np.ndarray, "n"], limits: ClipLimits, *, seed: int) -> list[Cut]:
        if limits.frames is None:
            return [(None, None)] * len(rows)
        kept = max(limits.frames, self.patch.t) // self.patch.t * self.patch.t
        shapes = gathered(self.shapes, self.starts, rows).tolist()
        return [(None if time <= kept else Crop(0, kept, 0, 0, height, width), None) for time, height, width in shapes]

    def key(self, row: int) -> str:
        return self._key(row) if self._key else f"row {row}"


def gathered(columns: Sequence[np.ndarray], starts: Sequence[int], rows: Int[np.ndarray, "n"]) -> np.ndarray:
    """The values at some rows, where the rows count through several columns one after another."""
    if len(columns) == 1:
        return columns[0][rows]
    owners = np.searchsorted(starts, rows, side="right") - 1
    found = np.empty((len(rows), *columns[0].shape[1:]), dtype=np.result_type(*columns))
    for number, column in enumerate(columns):
        mine = np.flatnonzero(owners == number)
        if mine.size:
            found[mine] = column[rows[mine] - starts[number]]
    return found
