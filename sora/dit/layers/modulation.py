"""Kinds of adaLN modulation: how scales, shifts and gates are computed from embedded noise levels.

They are the sum of a projection shared by all blocks, a projection of the block, and a table (bias) of the block; each kind has the table
and one or both projections. All start at zero, so that gates are zero and blocks are identities at initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class SingleModulation:
    """For dit.modulation: one projection shared by all blocks (adaLN-single; PixArt-alpha, Chen et al. 2023, 2.3)."""

    @property
    def shared(self) -> bool:
        return True

    def own(self, level_width: int, channels: int) -> LowRankProjection | None:
        return None


@dataclass(frozen=True)
class ZeroModulation:
    """For dit.modulation: one projection per block and none shared (adaLN-Zero; Peebles & Xie 2023, 3.2)."""

    @property
    def shared(self) -> bool:
        return False

    def own(self, level_width: int, channels: int) -> LowRankProjection | None:
        return LowRankProjection(level_width, None, channels)


@dataclass(frozen=True)
class LoRAModulation:
    """For dit.modulation: one projection shared by all blocks, plus a low-rank projection of rank `rank` per block (adaLN-LoRA; W.A.L.T,
    Gupta et al. 2023, 3.3; Cosmos, 2025)."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"modulation.rank is {self.rank}; a projection has a rank of 1 or more")

    @property
    def shared(self) -> bool:
        return True

    def own(self, level_width: int, channels: int) -> LowRankProjection | None:
        return LowRankProjection(level_width, self.rank, channels)


class LowRankProjection(nn.Module):
    """Projects embedded levels to the modulation of one block, through `rank` channels, or directly if `rank` is None; it has no bias."""

    def __init__(self, level_width: int, rank: int | None, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(level_width, rank, bias=False) if rank is not None else None
        self.up = nn.Linear(rank or level_width, channels, bias=False)

    def begin(self) -> None:
        """Initialise the output to zero."""
        nn.init.zeros_(self.up.weight)

    def forward(self, level: Float[Tensor, "U C"]) -> Float[Tensor, "U S"]:
        return self.up(level if self.down is None else self.down(level))
