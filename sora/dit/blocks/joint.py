"""Joint attention over the patches of a clip and the words of its caption, for blocks in which both are tokens."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.layout import Attention
from sora.dit.attention.patterns import full_attention
from sora.dit.dit import Context, Parts, Stream
from sora.tokens import Joined

Projected = tuple[Tensor, Tensor, Tensor]


def attend_jointly(
    attention: Attention, patches: Projected, words: Projected, context: Context
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
    """Attention in which each patch and word of a clip sees all its patches and words. patches, words: (queries, keys, values)."""
    joined = of_both(context)[1]
    q, k, v = (torch.cat(pair).index_select(0, joined.order) for pair in zip(patches, words, strict=True))
    o = attention(q, k, v, joined.segments, joined.segments).index_select(0, joined.places).flatten(1)
    return o[: len(patches[0])], o[len(patches[0]) :]


def of_both(context: Context) -> tuple[Stream, Joined]:
    """Noise levels of the words and the joint axis of patches and words, which a network computes for joint blocks only."""
    assert context.text_levels is not None and context.joined is not None, "the network did not see that its blocks are joint"
    return context.text_levels, context.joined


def refuse_patterns(kind: str, parts: Parts) -> None:
    """Raise ValueError unless the pattern is `full_attention`: the other patterns are not defined for words."""
    pattern = parts.pattern.func if isinstance(parts.pattern, partial) else parts.pattern
    if pattern is not full_attention:
        raise ValueError(
            f"dit.block._target_=sora.dit.{kind}_block lets patches and words attend to one another and takes "
            "dit.pattern._target_=sora.dit.full_attention only, not "
            f"{getattr(pattern, '__name__', pattern)}; choose that pattern, or blocks that attend to captions apart (sora.dit.cross_block)"
        )
