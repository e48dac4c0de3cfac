"""Single-stream blocks: patches and words share weights and modulation (FLUX.1; HunyuanVideo, Kong et al. 2024, 4.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.blocks.dual import DualBlock
from sora.dit.blocks.joint import attend_jointly, of_both, refuse_patterns
from sora.dit.dit import Context, Parts, SelfAttention, modulations


class SingleBlock(nn.Module):
    """x + gate * (attention(y) + MLP(y)) with y = norm(x) * (1 + scale) + shift, for both patches and words."""

    joint: ClassVar[bool] = True

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        refuse_patterns("single", parts)
        self.attend = parts.attention
        self.table = nn.Parameter(torch.zeros(3 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 3 * parts.width)
        self.norm = parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale, shift, gate = modulations(context.levels, self.table, self.own)
        text_scale, text_shift, text_gate = modulations(of_both(context)[0], self.table, self.own)
        y, read = self.norm(x, scale, shift), self.norm(text, text_scale, text_shift)
        patches, words = self.attention.project(y, context.rotation), self.attention.project(read, None)
        seen, told = attend_jointly(self.attend, patches, words, context)
        x = torch.addcmul(x, gate, self.attention.out(seen) + self.mlp(y))
        return x, torch.addcmul(text, text_gate, self.attention.out(told) + self.mlp(read))

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()


def single_block(number: int, parts: Parts) -> SingleBlock:
    """Build a `SingleBlock`, for dit.block; all blocks of the network are single-stream."""
    return SingleBlock(number, parts)


def dual_then_single_block(number: int, parts: Parts, *, dual: int) -> DualBlock | SingleBlock:
    """Build a `DualBlock` for the first `dual` blocks of the network and a `SingleBlock` for the others, for dit.block.

    Raises:
        ValueError: `dual` is negative, or leaves no single-stream block.
    """
    if not 0 <= dual < parts.depth:
        raise ValueError(
            f"block.dual={dual} of dit.depth={parts.depth} blocks leaves no single-stream block; choose 0 to {parts.depth - 1}"
        )
    return DualBlock(number, parts, last=False) if number < dual else SingleBlock(number, parts)
