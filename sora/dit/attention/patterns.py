"""Who sees whom in self-attention, inside a clip: `dit.pattern` of the network.

    pattern(attention, block_number) -> (q, k, v, layout) -> o

Each is a mask of reaches (`sora.dit.attention.layout.Mask`), so that every attention backend computes every pattern, by the quickest way it
has.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sora.dit.attention.layout import EVERYWHERE, Attention, Layout, Mask, SelfAttend, refuse_reach

ALL = EVERYWHERE


def full_attention(attention: Attention, block_number: int) -> SelfAttend:
    """Every token sees every token of its clip."""
    return partial(_unmasked, attention)


def factorised_attention(attention: Attention, block_number: int) -> SelfAttend:
    """Even blocks: the tokens of one's own frame; odd blocks: those of one's own place in all frames (Latte, Ma et al. 2024)."""
    return partial(_masked, attention, (ALL, 0, 0) if block_number % 2 else (0, ALL, ALL), False)


def windowed_attention(attention: Attention, block_number: int, *, frames: int, rows: int, columns: int) -> SelfAttend:
    """Tokens at most so many frames, rows and columns away, -1: no limit (Hassani et al. 2023, but cut at the borders)."""
    refuse_reach((frames, rows, columns))
    return partial(_masked, attention, (frames, rows, columns), False)


def causal_attention(attention: Attention, block_number: int, *, frames: int) -> SelfAttend:
    """One's own frame and at most `frames` before it, -1 for all of them: what long video is generated frame by frame with."""
    refuse_reach((frames, ALL, ALL))
    return partial(_masked, attention, (frames, ALL, ALL), True)


def _unmasked(attention: Attention, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    return attention(q, k, v, layout.segments, layout.segments)


def _masked(attention: Attention, reach: tuple[int, int, int], is_causal: bool, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    return attention(q, k, v, layout.segments, layout.segments, Mask(layout, reach, is_causal))
