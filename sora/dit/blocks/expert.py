"""Blocks in which patches and words share weights but have separate modulation ("expert adaLN"; CogVideoX, Yang et al. 2024, 2.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.blocks.joint import attend_jointly, of_both, refuse_patterns
from sora.dit.dit import Context, Parts, SelfAttention, modulations


class ExpertBlock(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift), for f = attention, then for f = MLP, for both patches and words."""

    joint: ClassVar[bool] = True

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        refuse_patterns("expert", parts)
        self.attend = parts.attention
        self.table, self.text_table = (nn.Parameter(torch.zeros(6 * parts.width)) for _ in range(2))
        self.own, self.text_own = (parts.modulation.own(parts.level_width, 6 * parts.width) for _ in range(2))
        self.norm1, self.norm2 = parts.norm(parts.width), parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        words = modulations(of_both(context)[0], self.text_table, self.text_own)
        seen, read = attend_jointly(
            self.attend,
            self.attention.project(self.norm1(x, scale1, shift1), context.rotation),
            self.attention.project(self.norm1(text, words[0], words[1]), None),
            context,
        )
        x, text = torch.addcmul(x, gate1, self.attention.out(seen)), torch.addcmul(text, words[2], self.attention.out(read))
        x = torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2)))
        return x, torch.addcmul(text, words[5], self.mlp(self.norm2(text, words[3], words[4])))

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates."""
        for own in (self.own, self.text_own):
            if own is not None:
                own.begin()
        self.attention.begin()


def expert_block(number: int, parts: Parts) -> ExpertBlock:
    """Build an `ExpertBlock`, for dit.block."""
    return ExpertBlock(number, parts)
