"""Encoder of class labels given as captions, for networks that were trained on classes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.system.files import text_hash
from sora.text.encoder import IdentityText
from sora.text.limits import CaptionLimit


class ClassEncoder:
    """Encodes the captions "0" to "count - 1" as one-hot vectors; the empty caption is one more class, for no class."""

    def __init__(self, *, count: int) -> None:
        if count < 1:
            raise ValueError(f"text.count={count}; there is at least one class")
        self.name, self.count = "classes", count

    @property
    def width(self) -> int:
        return self.count + 1

    @property
    def fingerprint(self) -> str:
        return text_hash(f"classes\t{self.count}")

    def to(self, device: torch.device | str) -> None:
        """Do nothing: encoding runs on the CPU."""

    def encode(self, captions: list[str]) -> list[Float[Tensor, "1 W"]]:
        """One token per caption, a one-hot vector. Raises ValueError for a caption that is no class."""
        wrong = [caption for caption in captions if caption and not (caption.isdecimal() and int(caption) < self.count)]
        if wrong:
            raise ValueError(f"{wrong[0][:80]!r} is no class: with text=classes a caption is a number from 0 to {self.count - 1}, or empty")
        numbers = torch.tensor([int(caption) if caption else self.count for caption in captions], dtype=torch.int64)
        return list(torch.nn.functional.one_hot(numbers, self.width).float()[:, None])

    def limits(self) -> list[CaptionLimit]:
        return []

    def models(self) -> list[nn.Module]:
        return []

    def text_module(self) -> IdentityText:
        return IdentityText()
