"""Text encoders that give token states and one pooled vector per caption (`TextTokens.pooled`), as HunyuanVideo and FLUX use them.

A caption is stored with the pooled vector as its first row and the token states after it, so that caches, packing and budgets work as for
any other encoder. `PooledText` separates the two when a pack reaches the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from sora.system.files import text_hash
from sora.text.limits import CaptionLimit
from sora.tokens import Segments, TextTokens, owners

if TYPE_CHECKING:
    from sora.text.encoder import TextEncoder  # not at run time: isinstance would read the property `width`, and so load the encoder


class WholeEncoder(Protocol):
    """Encodes each caption as one vector, as `sora.text.PretrainedPooled` does."""

    name: str

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def to(self, device: torch.device | str) -> None: ...

    def limits(self) -> Sequence[CaptionLimit]: ...

    def models(self) -> Sequence[nn.Module]: ...

    def encode(self, captions: list[str]) -> list[Float[Tensor, "W"]]: ...


class PooledCaptions:
    """Encoder made of two: `states` gives the token states, `whole` a pooled vector that is at most as wide as the states."""

    def __init__(self, *, states: TextEncoder, whole: WholeEncoder) -> None:
        self.states, self.whole = states, whole
        self.name = f"{states.name} and {whole.name}"

    @property
    def width(self) -> int:
        return self.states.width

    @property
    def fingerprint(self) -> str:
        return text_hash(f"pooled\t{self.states.fingerprint}\t{self.whole.fingerprint}")

    def to(self, device: torch.device | str) -> None:
        self.states.to(device)
        self.whole.to(device)

    def limits(self) -> list[CaptionLimit]:
        """Limits of both encoders, with the keys text.states.* and text.whole.*."""
        both = (("states", self.states), ("whole", self.whole))
        return [replace(limit, key=limit.key.replace("text.", f"text.{part}.", 1)) for part, encoder in both for limit in encoder.limits()]

    def models(self) -> list[nn.Module]:
        return [*self.states.models(), *self.whole.models()]

    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ W"]]:
        """For each caption, the pooled vector padded with zeros to the width of the states, followed by the token states."""
        beside = self.states.width - self.whole.width
        if beside < 0:
            raise ValueError(
                f"text.whole gives {self.whole.width} numbers for a caption and text.states {self.states.width} for a word; a vector is"
                " stored in the room of a word, so choose one that is not wider"
            )
        both = zip(self.whole.encode(captions), self.states.encode(captions), strict=True)
        return [torch.cat((pad(vector, (0, beside))[None], states)) for vector, states in both]

    def text_module(self) -> PooledText:
        return PooledText(self.whole.width)


class PooledText(nn.Module):
    """Moves the first `width` numbers of each caption's first row to `pooled`, and keeps the other rows as token states.

    The number of rows does not change, so that shapes do not depend on the captions: the padding grows by the rows that were removed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, text: TextTokens) -> TextTokens:
        cu, states = text.segments.cu_seqlens, text.states
        full = (cu.diff() > 0) & (torch.arange(text.segments.count, device=cu.device) < text.segments.count - 1)  # the last is padding
        taken = full.cumsum(0)  # number of first rows up to and including this segment
        owner, rows = owners(text.segments), torch.arange(len(states), device=cu.device)
        first = full[owner] & (rows == cu[owner])
        places = torch.where(first, len(states) - taken[owner], rows - taken[owner])  # first rows go to the end, in reverse order
        words = torch.zeros_like(states).index_copy(0, places, torch.where(first[:, None], 0, states))
        pooled = states.index_select(0, cu[:-1].clamp(max=len(states) - 1))[:, : self.width] * full[:, None]
        return TextTokens(words, _without_first(text.segments, full), pooled)


def _without_first(segments: Segments, full: Tensor) -> Segments:
    """Segments with one token less for every caption and as many more in the padding; `cu_seqlens` is computed on the device."""
    lengths = segments.host.diff()
    fewer = (lengths[:-1] > 0).to(lengths.dtype)
    host = segments.host - torch.cat((fewer.new_zeros(1), fewer.cumsum(0), fewer.new_zeros(1)))
    less = full[:-1].cumsum(0).to(segments.cu_seqlens.dtype)
    cu_seqlens = segments.cu_seqlens - torch.cat((less.new_zeros(1), less, less.new_zeros(1)))
    return Segments(host=host, cu_seqlens=cu_seqlens)
