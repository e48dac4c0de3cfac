"""Which tokens of its clip a token sees in self-attention: `pattern(attention, block_number) -> (q, k, v, layout) -> o`."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from sora.dit.attention import Attention
from sora.dit.layout import Layout


def full(attention: Attention, number: int) -> Callable[[Tensor, Tensor, Tensor, Layout], Tensor]:
    """dit.pattern: every token of a clip sees every other token of it, in every block."""
    del number

    def attend(q: Float[Tensor, "N H E"], k: Float[Tensor, "N K E"], v: Float[Tensor, "N K E"], layout: Layout) -> Float[Tensor, "N H E"]:
        return attention(q, k, v, layout.segments, layout.segments)

    return attend
