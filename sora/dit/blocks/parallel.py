"""Blocks whose attention and MLP read the same tokens and are added at once (GPT-J; ViT-22B, Dehghani et al. 2023, 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Context, CrossAttention, Parts, SelfAttention, modulations


class ParallelBlock(nn.Module):
    """x + gate * (attention(y) + MLP(y)) with y = norm(x) * (1 + scale) + shift, and then attention to the caption."""

    joint: ClassVar[bool] = False

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 3 * parts.width)
        self.norm = parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.cross = CrossAttention(parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale, shift, gate = modulations(context.levels, self.table, self.own)
        y = self.norm(x, scale, shift)
        x = torch.addcmul(x, gate, self.attention(y, context) + self.mlp(y))
        return x + self.cross(x, text, context), text

    def begin(self) -> None:
        """Make the block the identity: gates that are zero, and nothing from the caption."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def parallel_block(number: int, parts: Parts) -> ParallelBlock:
    """dit.block: see `ParallelBlock`."""
    return ParallelBlock(number, parts)
