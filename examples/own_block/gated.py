"""A block of one's own: attention and MLP side by side, each behind a gate that the token itself opens."""

import torch
from torch import nn

from sora.dit.dit import Parts, SelfAttention, modulations


class Gated(nn.Module):
    """x + gate * sigmoid(W n) * (attention(n) + strength * mlp(n)), for n = norm(x) * (1 + scale) + shift."""

    joint = False  # whether words are tokens of it, too

    def __init__(self, number: int, parts: Parts, strength: float):
        super().__init__()
        self.strength = strength
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm, self.open = parts.norm(parts.width), nn.Linear(parts.width, parts.width)
        self.attention, self.mlp = SelfAttention(number, parts), parts.mlp()

    def forward(self, x, text, context):
        scale, shift, gate, *_ = modulations(context.levels, self.table, self.own)
        n = self.norm(x, scale, shift)
        return x + gate * self.open(n).sigmoid() * (self.attention(n, context) + self.strength * self.mlp(n)), text

    def begin(self):
        """Make the block the identity: the network's modulation and the table are zero at birth, and so is what is the block's own."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()


def gated(number: int, parts: Parts, *, strength: float = 1.0) -> Gated:
    """dit.block: see `Gated`. strength: of the MLP beside the attention."""
    return Gated(number, parts, strength)
