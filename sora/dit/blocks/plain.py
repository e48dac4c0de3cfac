"""Blocks without attention to captions, for networks that are conditioned by modulation only (DiT, Peebles & Xie 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Context, Parts, SelfAttention, modulations


class PlainBlock(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift), for f = self-attention, then for f = MLP."""

    joint: ClassVar[bool] = False

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm1, self.norm2 = parts.norm(parts.width), parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M W"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M W"]]:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        x = torch.addcmul(x, gate1, self.attention(self.norm1(x, scale1, shift1), context))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2))), text

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()


def plain_block(number: int, parts: Parts) -> PlainBlock:
    """Build a `PlainBlock`, for dit.block. With dit.pooled_text=false as well, the network ignores captions."""
    return PlainBlock(number, parts)
