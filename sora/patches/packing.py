"""Stand clips of any size end to end on one token axis of a fixed length, and cut them apart again.

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
    """The moment of each latent frame in seconds: 0 for the first, then the centres of the `stride` frames each one covers.

    A causal VAE makes latent frame 0 of the first frame alone, and latent frame j of the frames (j-1)*stride+1 .. j*stride.
    """
    if not fps > 0:
        raise ValueError(f"a clip says that it has {fps} frames per second; it must be above 0")
    centres = (torch.arange(latent_frames, dtype=torch.float64) - 1) * stride + 1 + (stride - 1) / 2
    centres[:1] = 0
    return (centres / fps).float()


def patch_times(frames: Float[Tensor, "t"], patch_frames: int) -> Float[Tensor, "s"]:
    """The moment of each row of patches in seconds: the mean over the latent frames a patch holds."""
    return frames.unflatten(0, (-1, patch_frames)).mean(1)


@lru_cache(maxsize=4096)
def _rows_and_columns(grid: Grid) -> Float[Tensor, "n 2"]:
    """Row and column of each patch of one frame, counted from 0, repeated for every frame."""
    rows, columns = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    return torch.stack((rows, columns), dim=-1).reshape(-1, 2).repeat(grid.t, 1).float()


def positions(grid: Grid, seconds: Float[Tensor, "t"]) -> Float[Tensor, "n 3"]:
    """(seconds, row, column) of each patch of a clip. seconds: one for each of the grid's t."""
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

    seconds: for each clip, the moment of each of its grid's t (see `frame_times`).
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
    """The real clips' tokens, as views; padding is left out."""
    return list(tokens[: sum(grid.tokens for grid in grids)].split([grid.tokens for grid in grids]))
