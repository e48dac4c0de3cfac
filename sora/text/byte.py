"""A small byte-level text encoder that is trained with the network; it needs no download and no vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.system.files import text_hash
from sora.text.limits import CaptionLimit
from sora.tokens import TextTokens

START = 256  # start token of every caption, so that the empty caption has a token too


class ByteEncoder:
    """Encodes a caption as its UTF-8 bytes; `text_module` returns the trained layers that turn bytes into states.

    width: channels of the states. depth: number of mixing layers. reach: number of neighbours on each side that a layer sees.
    max_tokens: maximum number of tokens, the start token included; further bytes are cut off.
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
        """Hash of the stored bytes' format only, because the layers belong to the network's weights."""
        return text_hash(f"bytes\t{self.max_tokens}")

    def to(self, device: torch.device | str) -> None:
        """Do nothing: encoding runs on the CPU."""

    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ 1"]]:
        """Start token and bytes of each caption, as float32 numbers."""
        rows = [[START, *caption.encode("utf-8")[: self.max_tokens - 1]] for caption in captions]
        return [torch.tensor(row, dtype=torch.float32)[:, None] for row in rows]

    def limits(self) -> list[CaptionLimit]:
        return [CaptionLimit("text.max_tokens", self.max_tokens, _beyond)]

    def models(self) -> list[nn.Module]:
        return []

    def text_module(self) -> ByteText:
        return ByteText(width=self.width, depth=self.depth, reach=self.reach)


def _beyond(captions: list[str], tokens: int) -> list[str]:
    """Text of each caption beyond `tokens` tokens; a character whose bytes are cut apart counts as lost."""
    kept = [caption.encode()[: tokens - 1].decode(errors="ignore") for caption in captions]
    return [caption[len(start) :] for caption, start in zip(captions, kept, strict=True)]


class ByteText(nn.Module):
    """Maps bytes to states: an embedding, sinusoidal positions, and residual layers that mix each byte with its neighbours."""

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
        """Indices of the K = 2 * reach + 1 tokens around each token, and whether each belongs to the same caption."""
        around = torch.arange(-self.reach, self.reach + 1, device=owner.device)
        wanted = torch.arange(len(owner), device=owner.device)[:, None] + around
        inside = wanted.clamp(0, len(owner) - 1)
        return inside, (inside == wanted) & (owner[inside] == owner[:, None])
