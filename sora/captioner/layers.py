"""Transformer layers over clips and captions that are padded to the longest of a pack."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.tokens import PackedTokens


class PaddedClips(NamedTuple):
    """The tokens of a pack, one row per clip. patches: (G, L, P). places: (G, L, 3), see `PackedTokens`. real: (G, L), which are tokens."""

    patches: Float[Tensor, "G L P"]
    places: Float[Tensor, "G L 3"]
    real: Bool[Tensor, "G L"]


def padded(tokens: PackedTokens) -> PaddedClips:
    """The clips of a pack, padded to the longest; the pack's own padding is left behind."""
    lengths = torch.tensor([grid.tokens for grid in tokens.grids])
    steps = torch.arange(int(lengths.max()))
    real = steps < lengths[:, None]
    index = torch.where(real, steps + (lengths.cumsum(0) - lengths)[:, None], 0).to(tokens.patches.device)
    return PaddedClips(tokens.patches[index], tokens.positions[index], real.to(tokens.patches.device))


class PaddedAttention(nn.Module):
    """Multi-head attention with normalised queries and keys (RMS), of padded rows to padded rows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} does not divide into heads={heads}; change captioner_net.width or captioner_net.heads")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "B N D"], y: Float[Tensor, "B M D"], *, seen: Bool[Tensor, "B M"] | None = None, causal: bool = False
    ) -> Float[Tensor, "B N D"]:
        """x asks, y answers. seen: which rows of y are real (None: all). causal: row n of x sees rows 0..n of y, which are x's own."""
        query, (key, value) = self._split(self.query(x)), map(self._split, self.key_value(y).chunk(2, dim=-1))
        query, key = F.rms_norm(query, query.shape[-1:]), F.rms_norm(key, key.shape[-1:])
        mask = None if seen is None else seen[:, None, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N E"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Sequential):
    """Two linear layers with GELU between; the second begins at zero."""

    def __init__(self, width: int, ratio: float) -> None:
        inner = round(width * ratio)
        super().__init__(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        nn.init.zeros_(self[2].get_parameter("weight"))


class PaddedBlock(nn.Module):
    """A pre-norm transformer block: self-attention, cross-attention to a memory if it has one, MLP."""

    def __init__(self, width: int, heads: int, ratio: float, *, memory: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), PaddedAttention(width, heads)
        self.norm_memory = nn.LayerNorm(width) if memory else None
        self.memory = PaddedAttention(width, heads) if memory else None
        self.norm_mlp, self.mlp = nn.LayerNorm(width), MLP(width, ratio)
        nn.init.zeros_(self.attention.out.weight)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        *,
        seen: Bool[Tensor, "B N"] | None = None,
        causal: bool = False,
        memory: Float[Tensor, "B M D"] | None = None,
        memory_seen: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, seen=seen, causal=causal)
        if self.memory is not None and self.norm_memory is not None and memory is not None:
            x = x + self.memory(self.norm_memory(x), memory, seen=memory_seen)
        return x + self.mlp(self.norm_mlp(x))


class PlaceWaves(nn.Module):
    """Sines and cosines of coordinates at `count` frequencies between `least` and `most` radians a unit, mapped to `width` channels."""

    frequencies: Float[Tensor, "F"]

    def __init__(self, coordinates: int, width: int, *, count: int, least: float, most: float) -> None:
        super().__init__()
        if count < 1 or not 0 < least <= most:
            raise ValueError(f"waves: count={count} must be at least 1, and least={least} and most={most} above 0 in this order")
        self.register_buffer("frequencies", torch.exp(torch.linspace(log(least), log(most), count)), persistent=False)
        self.map = nn.Linear(2 * count * coordinates, width)

    def forward(self, places: Float[Tensor, "*B C"]) -> Float[Tensor, "*B D"]:
        angles = places[..., None] * self.frequencies
        return self.map(torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2))


def rows(lists: list[list[int]], *, fill: int) -> Int[Tensor, "R L"]:
    """Lists of ids as one tensor, each filled up at its end."""
    longest = max(map(len, lists), default=0)
    return torch.tensor([[*line, *[fill] * (longest - len(line))] for line in lists], dtype=torch.int64).reshape(len(lists), longest)
