"""Parallel blocks: attention and MLP have the same input, and their outputs are added (GPT-J; ViT-22B, Dehghani et al. 2023, 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Context, CrossAttention, Parts, SelfAttention, modulations


class ParallelBlock(nn.Module):
    """x + gate * (attention(y) + MLP(y)) with y = norm(x) * (1 + scale) + shift, followed by cross-attention to the caption."""

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
        """Initialise the block to the identity: zero gates and zero output of the cross-attention."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def parallel_block(number: int, parts: Parts) -> ParallelBlock:
    """Build a `ParallelBlock`, for dit.block."""
    return ParallelBlock(number, parts)
