"""Pack the caption states of several clips along one token axis, with one segment per clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sora.system.terminal import counted
from sora.tokens import Segments, TextTokens


def pack_text(states: Sequence[Float[Tensor, "_ D"]], *, budget: int | None, max_clips: int) -> TextTokens:
    """Concatenate the captions of a pack's clips, followed by empty segments up to `max_clips` and one padding segment.

    states: token states of each clip's caption, in packed order. budget: M, the number of tokens of the pack with padding; None for no
    padding, if shapes may change from step to step.
    """
    lengths = [len(state) for state in states]
    total = sum(lengths)
    if not states or len(states) > max_clips or (budget is not None and total > budget):
        raise ValueError(
            f"{counted(len(states), 'caption')} of {counted(total, 'token')}: the budget is of 1 to {max_clips} clips and {budget} text "
            "tokens; raise data.text_budget (null: no limit) or plan.max_clips, or shorten captions by text.max_tokens"
        )
    rest = max(0, 2 - total) if budget is None else budget - total  # at least 2 tokens: torch.compile specialises on an axis of size 1
    segments = Segments.of([*lengths, *[0] * (max_clips - len(lengths)), rest])
    return TextTokens(states=pad(torch.cat(list(states)), (0, 0, 0, rest)), segments=segments)
