"""The parts of a captioner that know words: the decoder that writes captions, and the tower that reads them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.captioner.layers import PaddedBlock, PlaceWaves
from sora.captioner.words import PADDING


class WordDecoder(nn.Module):
    """A causal transformer over words that attends to the memory of its clip."""

    def __init__(self, words: int, width: int, heads: int, ratio: float, *, depth: int) -> None:
        super().__init__()
        self.embed, self.places = word_embedding(words, width), word_places(width)
        self.blocks = nn.ModuleList(PaddedBlock(width, heads, ratio, memory=True) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, words: Int[Tensor, "R L"], memory: Float[Tensor, "R M D"], real: Bool[Tensor, "R M"]) -> Float[Tensor, "R L W"]:
        x = self.embed(words) + self.places(numbered(words))
        for block in self.blocks:
            x = block(x, causal=True, memory=memory, memory_seen=real)
        return self.out(self.norm(x))


class TextTower(nn.Module):
    """A transformer that reads a whole caption and returns one vector of unit length."""

    def __init__(self, words: int, width: int, heads: int, ratio: float, *, depth: int) -> None:
        super().__init__()
        self.embed, self.places = word_embedding(words, width), word_places(width)
        self.blocks = nn.ModuleList(PaddedBlock(width, heads, ratio, memory=False) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, words: Int[Tensor, "R L"]) -> Float[Tensor, "R D"]:
        real = words != PADDING
        x = self.embed(words) + self.places(numbered(words))
        for block in self.blocks:
            x = block(x, seen=real)
        mean = (self.norm(x) * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.out(mean), dim=-1)


def word_embedding(words: int, width: int) -> nn.Embedding:
    table = nn.Embedding(words, width)
    nn.init.normal_(table.weight, std=0.5)
    return table


def word_places(width: int) -> PlaceWaves:
    """Places of words: whole numbers from 0, which are told apart up to some thousand."""
    return PlaceWaves(1, width, count=16, least=1e-3, most=2.0)


def numbered(words: Int[Tensor, "R L"]) -> Float[Tensor, "1 L 1"]:
    return torch.arange(words.shape[1], device=words.device, dtype=torch.float32)[None, :, None]
