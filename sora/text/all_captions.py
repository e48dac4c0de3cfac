"""A clip's captions themselves, in the place of the states of one: for what learns to write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sora.system.files import text_hash


class AllCaptions:
    """Stands where a dataset of clips takes a text encoder: of each clip it gives every caption, and its facts, as the bytes of JSON.

    Nothing is cached and nothing is encoded, so that captions are read where the dataset has them.
    """

    name: ClassVar[str] = "captions"
    width: ClassVar[int] = 1

    @property
    def fingerprint(self) -> str:
        return text_hash("captions and facts as JSON, version 1")

    def states(self, captions: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Float[Tensor, "_ 1"]:
        """One row per byte. captions: (kind, text) pairs. facts: anything JSON-able."""
        content = json.dumps({"captions": [list(pair) for pair in captions], "facts": dict(facts)}).encode("ascii")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).float()[:, None]


def captions_in(states: Float[Tensor, "_ 1"]) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The captions, as (kind, text) pairs, and the facts that `AllCaptions.states` wrote."""
    found = json.loads(bytes(states[:, 0].to(torch.uint8).cpu().tolist()))
    return [(kind, text) for kind, text in found["captions"]], found["facts"]
