"""What an encoder of captions is, and the part of it that trains with the network (for frozen encoders: nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.text.limits import CaptionLimit
from sora.tokens import TextTokens


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to token states.

    width: of the states that the network sees. fingerprint: changes with anything that changes `encode`; caches are keyed by it.
    """

    name: str

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def to(self, device: torch.device | str) -> None:
        """Encode there from now on."""
        ...

    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ W"]]:
        """One (tokens, numbers) tensor per caption, float32 on the CPU; it can be stored. The empty caption has tokens too."""
        ...

    def limits(self) -> Sequence[CaptionLimit]:
        """Where captions are cut; that of the words comes first."""
        ...

    def models(self) -> Sequence[nn.Module]:
        """The frozen models that `encode` runs, each once for a caption that is encoded alone: ranks may hold them in parts."""
        ...

    def text_module(self) -> nn.Module:
        """Packed stored states -> packed states of `width`: a new module, applied in every training and sampling step."""
        ...


class IdentityText(nn.Module):
    """The text module of a frozen encoder: its stored states are what the network sees."""

    def forward(self, text: TextTokens) -> TextTokens:
        return text
