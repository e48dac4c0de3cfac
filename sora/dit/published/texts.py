"""Caption embeddings of published networks, for dit.text: (text_width, width, heads, attention) -> module(text, peaks) -> words.

peaks: (G,), highest noise level of each segment. The words are `TextTokens`, because their number may differ from that of the states.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.attention.layout import Attention
from sora.dit.dit import GainedLayerNorm
from sora.dit.published.levels import LevelWaves
from sora.tokens import Segments, TextTokens, means, owners


class ProjectedText(nn.Module):
    """Projects each state by one linear layer, or by two with a GELU between. fill: number of words to pad captions to; 0: no padding."""

    def __init__(self, text_width: int, width: int, *, layers: int, fill: int) -> None:
        super().__init__()
        if fill < 0:
            raise ValueError(f"text.fill is {fill}; captions are filled up to 1 word or more, or end where they end: 0")
        self.fill = fill
        last = [nn.GELU(approximate="tanh"), nn.Linear(width, width)] if layers == 2 else []
        self.project = nn.Sequential(nn.Linear(text_width, width), *last)

    def forward(self, text: TextTokens, peaks: Float[Tensor, "G"]) -> TextTokens:
        text = filled(text, self.fill) if self.fill else text
        return replace(text, states=self.project(text.states))


def linear_text(text_width: int, width: int, heads: int, attention: Attention) -> ProjectedText:
    """Build a `ProjectedText` with one layer, for dit.text."""
    return ProjectedText(text_width, width, layers=1, fill=0)


def two_layer_text(text_width: int, width: int, heads: int, attention: Attention, *, fill: int) -> ProjectedText:
    """Build a `ProjectedText` with two layers, for dit.text."""
    return ProjectedText(text_width, width, layers=2, fill=fill)


def filled(text: TextTokens, length: int) -> TextTokens:
    """Pad every caption with zeros to `length` words, for networks that were trained without a mask for captions.

    Words beyond `length` are dropped: those of the padding segment, as captions must be shorter (text.max_tokens). No shape depends on the
    lengths of captions.
    """
    segments, states = text.segments.whole, text.segments.everyones(text.states)
    count, width = segments.count, states.shape[1]
    owner = owners(segments)
    inside = torch.arange(len(owner), device=owner.device) - segments.cu_seqlens[owner]
    place = torch.where(inside < length, owner * length + inside, count * length)
    states = states.new_zeros(count * length + 1, width).index_copy(0, place, states)[:-1]
    ends = length * (torch.ones_like(segments.host).cumsum(0) - 1)  # from the host tensor, so that it has values under FakeTensorMode
    places = ends.to(device=segments.cu_seqlens.device, dtype=torch.int32, non_blocking=True)
    part = text.segments.part(Segments(ends, places))
    return replace(text, states=part.mine(states), segments=part)


class Unread(nn.Module):
    """Returns the states unchanged, for blocks that do not use them."""

    def forward(self, text: TextTokens, peaks: Float[Tensor, "G"]) -> TextTokens:
        return text


def unread_text(text_width: int, width: int, heads: int, attention: Attention) -> Unread:
    """Build an `Unread`, for dit.text."""
    return Unread()


class RefinerBlock(nn.Module):
    """x + gate * f(norm(x)), for f = self-attention of a caption's words, then f = MLP; gates depend on noise level and mean caption."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1, self.norm2 = GainedLayerNorm(width, eps=1e-6), GainedLayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.gates = nn.Linear(width, 2 * width)

    def forward(self, x: Float[Tensor, "M D"], level: Float[Tensor, "M D"], text: TextTokens) -> Float[Tensor, "M D"]:
        gate1, gate2 = self.gates(F.silu(level)).chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x = torch.addcmul(x, gate1, self.out(self.attention(q, k, v, text.segments, text.segments).flatten(1)))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x)))


class RefinedText(nn.Module):
    """HunyuanVideo's token refiner (Kong et al. 2024, 4.2): projection of the states, then `depth` self-attention blocks of the words."""

    def __init__(self, text_width: int, width: int, heads: int, attention: Attention, *, depth: int) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"text.depth is {depth}; it counts blocks, 0 or more")
        self.time = LevelWaves(256, width, late=False)
        self.pooled = nn.Sequential(nn.Linear(text_width, width), nn.SiLU(), nn.Linear(width, width))
        self.project = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(RefinerBlock(width, heads, attention) for _ in range(depth))

    def forward(self, text: TextTokens, peaks: Float[Tensor, "G"]) -> TextTokens:
        level = self.time(1000 * peaks) + self.pooled(means(text.states, text.segments))
        level = F.embedding(owners(text.segments), level)
        x = self.project(text.states)
        for block in self.blocks:
            x = block(x, level, text)
        return replace(text, states=x)


def refined_text(text_width: int, width: int, heads: int, attention: Attention, *, depth: int) -> RefinedText:
    """Build a `RefinedText` with `depth` blocks, for dit.text."""
    return RefinedText(text_width, width, heads, attention, depth=depth)
