"""Interface of text encoders, and the identity module that frozen encoders use as the trained part."""

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
    """Encodes captions as token states.

    width: channels of the states that the network sees. fingerprint: hash that changes whenever the output of `encode` may change; caches
    are keyed by it.
    """

    name: str

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def to(self, device: torch.device | str) -> None:
        """Move the encoder to a device."""
        ...

    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ W"]]:
        """States to store for each caption: (tokens, channels), float32 on the CPU. The empty caption has at least one token."""
        ...

    def limits(self) -> Sequence[CaptionLimit]:
        """Token limits at which captions are truncated; the limit of the token states comes first."""
        ...

    def models(self) -> Sequence[nn.Module]:
        """Frozen models that `encode` runs, so that FSDP can shard them. `encode` of one caption must run each of them exactly once."""
        ...

    def text_module(self) -> nn.Module:
        """Create the module from packed stored states to packed states of `width` channels, applied in every training and sampling step."""
        ...


class IdentityText(nn.Module):
    """Text module of a frozen encoder: returns the stored states unchanged."""

    def forward(self, text: TextTokens) -> TextTokens:
        return text
