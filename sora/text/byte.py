"""A small encoder of bytes that trains with the network: no download, no vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.system.files import text_hash
from sora.text.limits import CaptionLimit
from sora.tokens import TextTokens

START = 256  # stands before every caption, so that the empty one has a token too


class ByteEncoder:
    """Stores a caption as its UTF-8 bytes; `text_module` makes the layers that learn what they mean.

    max_tokens: bytes beyond are cut off. reach: how many neighbours on each side a layer sees.
    """

    def __init__(self, *, width: int, depth: int, reach: int, max_tokens: int) -> None:
        if width % 2 or min(width, reach, max_tokens) < 1 or depth < 0:
            raise ValueError(
                f"text: width={width} must be even, reach={reach} and max_tokens={max_tokens} at least 1, and depth={depth} at least 0"
            )
        self.name = "byte"
        self.width, self.depth, self.reach, self.max_tokens = width, depth, reach, max_tokens

    @property
    def fingerprint(self) -> str:
        """Of what is stored: the layers belong to the network's weights."""
        return text_hash(f"bytes\t{self.max_tokens}")

    def to(self, device: torch.device | str) -> None:
        """Nothing here is worth a device."""

    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ 1"]]:
        """The bytes of each caption as numbers, after a start mark."""
        rows = [[START, *caption.encode("utf-8")[: self.max_tokens - 1]] for caption in captions]
        return [torch.tensor(row, dtype=torch.float32)[:, None] for row in rows]

    def limits(self) -> list[CaptionLimit]:
        return [CaptionLimit("text.max_tokens", self.max_tokens, _beyond)]

    def models(self) -> list[nn.Module]:
        return []

    def text_module(self) -> ByteText:
        return ByteText(width=self.width, depth=self.depth, reach=self.reach)


def _beyond(captions: list[str], tokens: int) -> list[str]:
    """What stands behind the first bytes of each caption; a letter that is cut in its middle is lost as a whole."""
    kept = [caption.encode()[: tokens - 1].decode(errors="ignore") for caption in captions]
    return [caption[len(start) :] for caption, start in zip(captions, kept, strict=True)]


class ByteText(nn.Module):
    """Bytes -> states: an embedding, waves for the place in the caption, and layers that mix each byte with its neighbours."""

    rates: Float[Tensor, "W"]

    def __init__(self, *, width: int, depth: int, reach: int) -> None:
        super().__init__()
        self.width, self.reach = width, reach
        self.embed = nn.Embedding(START + 1, width)
        self.mix = nn.ModuleList(nn.Linear((2 * reach + 1) * width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.register_buffer("rates", 10_000 ** (-torch.arange(width // 2) / (width // 2)), persistent=False)

    def forward(self, text: TextTokens) -> TextTokens:
        tokens, bounds = torch.arange(len(text.states), device=text.states.device), text.segments.cu_seqlens.long()
        owner = torch.bucketize(tokens, bounds[1:], right=True)
        place = (tokens - bounds[owner])[:, None] * self.rates
        x = self.embed(text.states[:, 0].long()) + torch.cat((place.cos(), place.sin()), dim=-1)
        neighbours, own = self._neighbours(owner)
        for norm, mix in zip(self.norms, self.mix, strict=True):
            seen = norm(x)[neighbours] * own[..., None]  # M K D
            x = x + F.gelu(mix(seen.flatten(1)))
        return TextTokens(states=x, segments=text.segments)

    def _neighbours(self, owner: Int[Tensor, "M"]) -> tuple[Int[Tensor, "M K"], Bool[Tensor, "M K"]]:
        """The places around each token, and which of them belong to the same caption."""
        around = torch.arange(-self.reach, self.reach + 1, device=owner.device)
        wanted = torch.arange(len(owner), device=owner.device)[:, None] + around
        inside = wanted.clamp(0, len(owner) - 1)
        return inside, (inside == wanted) & (owner[inside] == owner[:, None])
