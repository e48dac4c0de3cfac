"""Concatenate clips of any size along one token axis of fixed length, and split them again.

The layout is that of `sora.tokens`: real clips, empty segments up to the clip budget, one padding segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sora.tokens import Grid, PackedTokens, Segments


def frame_times(latent_frames: int, fps: float, stride: int) -> Float[Tensor, "t"]:
    """Time of each latent frame in seconds: 0 for the first, then the centre of the `stride` frames that each one encodes.

    A causal VAE encodes frame 0 as latent frame 0, and frames (j-1)*stride+1 .. j*stride as latent frame j.
    """
    if not fps > 0:
        raise ValueError(f"a clip says that it has {fps} frames per second; it must be above 0")
    centres = (torch.arange(latent_frames, dtype=torch.float64) - 1) * stride + 1 + (stride - 1) / 2
    centres[:1] = 0
    return (centres / fps).float()


def patch_times(frames: Float[Tensor, "t"], patch_frames: int) -> Float[Tensor, "s"]:
    """Time in seconds of each patch along the time axis: the mean over its `patch_frames` latent frames."""
    return frames.unflatten(0, (-1, patch_frames)).mean(1)


@lru_cache(maxsize=4096)
def _rows_and_columns(grid: Grid) -> Float[Tensor, "n 2"]:
    """Row and column, from 0, of each patch of a clip (n = t * h * w)."""
    rows, columns = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    return torch.stack((rows, columns), dim=-1).reshape(-1, 2).repeat(grid.t, 1).float()


def positions(grid: Grid, seconds: Float[Tensor, "t"]) -> Float[Tensor, "n 3"]:
    """Position (seconds, row, column) of each patch of a clip. seconds: (t,), time of each patch along the time axis."""
    if len(seconds) != grid.t:
        raise ValueError(f"a grid of {grid.t} patches in time got {len(seconds)} moments")
    time = seconds.float().repeat_interleave(grid.h * grid.w)
    return torch.cat((time[:, None], _rows_and_columns(grid)), dim=1)


def pack(
    clips: Sequence[Float[Tensor, "_ P"]],
    grids: Sequence[Grid],
    *,
    seconds: Sequence[Float[Tensor, "_"]],
    budget: int,
    max_clips: int,
) -> PackedTokens:
    """Pack clips of patches into `budget` tokens and `max_clips` + 1 segments.

    seconds: for each clip, the time of each of its patches along the time axis, (t,) (see `patch_times`).
    """
    total = sum(grid.tokens for grid in grids)
    if not clips or len(clips) > max_clips or total > budget:
        raise ValueError(
            f"a pack of {len(clips)} clips and {total} tokens does not fit the budget of 1 to {max_clips} clips"
            f" and {budget} tokens; make fewer or smaller clips or raise plan.max_clips, plan.budget"
        )
    for number, (clip, grid) in enumerate(zip(clips, grids, strict=True)):
        if len(clip) != grid.tokens:
            raise ValueError(f"clip {number} has {len(clip)} patches, its grid {grid.t}x{grid.h}x{grid.w} says {grid.tokens}")
    places = [positions(grid, times) for grid, times in zip(grids, seconds, strict=True)]
    patches = pad(torch.cat(list(clips)), (0, 0, 0, budget - total))
    where = pad(torch.cat(places), (0, 0, 0, budget - total))
    lengths = [grid.tokens for grid in grids] + [0] * (max_clips - len(clips)) + [budget - total]
    return PackedTokens(patches=patches, positions=where, segments=Segments.of(lengths), grids=tuple(grids))


def unpack(tokens: Float[Tensor, "N P"], grids: Sequence[Grid]) -> list[Float[Tensor, "_ P"]]:
    """Split packed tokens into one view per real clip; padding is dropped."""
    return list(tokens[: sum(grid.tokens for grid in grids)].split([grid.tokens for grid in grids]))
