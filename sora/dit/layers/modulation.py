"""How noise levels reach the blocks as scales, shifts and gates (adaLN): what all blocks share, and what each has of its own.

Every block adds a table of its own to both. Each kind starts at zero, so that gates are closed and blocks are identities at birth.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class SingleModulation:
    """dit.modulation: one projection for all blocks; a block has its table only (adaLN-single; PixArt-alpha, Chen et al. 2023, 2.3)."""

    @property
    def shared(self) -> bool:
        return True

    def own(self, level_width: int, channels: int) -> LowRankProjection | None:
        return None


@dataclass(frozen=True)
class ZeroModulation:
    """dit.modulation: each block has a projection of its own (adaLN-zero, Peebles & Xie 2023, 3.2)."""

    @property
    def shared(self) -> bool:
        return False

    def own(self, level_width: int, channels: int) -> LowRankProjection | None:
        return LowRankProjection(level_width, None, channels)


@dataclass(frozen=True)
class LoRAModulation:
    """dit.modulation: one projection for all blocks, and a small difference of low rank in each (adaLN-LoRA; W.A.L.T, Gupta et al. 2023,
    3.3; Cosmos, 2025). rank: of the difference."""

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
    """Level vectors to the scales, shifts and gates of one block, through `rank` channels or at once. The block's table is its bias."""

    def __init__(self, level_width: int, rank: int | None, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(level_width, rank, bias=False) if rank is not None else None
        self.up = nn.Linear(rank or level_width, channels, bias=False)

    def begin(self) -> None:
        """Begin as zero."""
        nn.init.zeros_(self.up.weight)

    def forward(self, level: Float[Tensor, "U C"]) -> Float[Tensor, "U S"]:
        return self.up(level if self.down is None else self.down(level))
