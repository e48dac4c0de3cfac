"""Dual-stream blocks: patches and words have separate weights and share one attention (MM-DiT; Esser et al. 2024, 4.1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.blocks.joint import attend_jointly, of_both, refuse_patterns
from sora.dit.dit import Context, Parts, SelfAttention, modulations


class DualBlock(nn.Module):
    """Two `sora.dit.PlainBlock`s, one for patches and one for words, with one attention over both.

    last: omit the layers that only update the words, because no block follows (as in Stable Diffusion 3).
    """

    joint: ClassVar[bool] = True

    def __init__(self, number: int, parts: Parts, *, last: bool) -> None:
        super().__init__()
        refuse_patterns("dual", parts)
        width, self.attend = parts.width, parts.attention
        self.table, self.text_table = nn.Parameter(torch.zeros(6 * width)), nn.Parameter(torch.zeros((2 if last else 6) * width))
        self.own = parts.modulation.own(parts.level_width, len(self.table))
        self.text_own = parts.modulation.own(parts.level_width, len(self.text_table))
        self.norm1, self.norm2, self.text_norm1 = (parts.norm(width) for _ in range(3))
        self.attention, self.text_attention = SelfAttention(number, parts), SelfAttention(number, parts)
        self.mlp = parts.mlp()
        self.text_norm2, self.text_mlp = (None, None) if last else (parts.norm(width), parts.mlp())
        if last:
            self.text_attention.out = nn.Identity()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        text_scale, text_shift, *more = modulations(of_both(context)[0], self.text_table, self.text_own)
        patches = self.attention.project(self.norm1(x, scale1, shift1), context.rotation)
        words = self.text_attention.project(self.text_norm1(text, text_scale, text_shift), None)
        seen, read = attend_jointly(self.attend, patches, words, context)
        x = torch.addcmul(x, gate1, self.attention.out(seen))
        x = torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2)))
        if self.text_norm2 is None or self.text_mlp is None:
            return x, text
        gate1, scale2, shift2, gate2 = more
        text = torch.addcmul(text, gate1, self.text_attention.out(read))
        return x, torch.addcmul(text, gate2, self.text_mlp(self.text_norm2(text, scale2, shift2)))

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates."""
        for own in (self.own, self.text_own):
            if own is not None:
                own.begin()
        self.attention.begin()
        self.text_attention.begin()


def dual_block(number: int, parts: Parts) -> DualBlock:
    """Build a `DualBlock`, for dit.block; the last block of the network does not update the words."""
    return DualBlock(number, parts, last=number == parts.depth - 1)
