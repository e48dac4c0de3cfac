"""Where the tokens of a pack lie, as attention patterns and positions want to know it: made once per forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sora.tokens import Grid, PackedTokens, Segments


@dataclass(frozen=True)
class Layout:
    """segments: the clips and the padding. grids: of the real clips, on the host. coordinates: (N, 3), frame, row and column of each token
    in its own clip; 0 for padding."""

    segments: Segments
    grids: tuple[Grid, ...]
    coordinates: Int[Tensor, "N 3"]

    @classmethod
    def of(cls, tokens: PackedTokens) -> Layout:
        parts = [torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, 3) for grid in tokens.grids]
        padding = torch.zeros(tokens.segments.total - tokens.real, 3, dtype=torch.int64)
        coordinates = torch.cat((*parts, padding)).to(tokens.positions.device, non_blocking=True)
        return cls(segments=tokens.segments, grids=tokens.grids, coordinates=coordinates)
