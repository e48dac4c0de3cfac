"""Patterns of self-attention within a clip, for the key dit.pattern: which tokens each token sees.

    pattern(attention, block_number) -> (q, k, v, layout) -> o

Each pattern but the full one is a `sora.dit.attention.layout.Mask`, so that attention backends need no code for single patterns.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sora.dit.attention.layout import EVERYWHERE, Attention, Layout, Mask, SelfAttend, refuse_reach

ALL = EVERYWHERE


def full_attention(attention: Attention, block_number: int) -> SelfAttend:
    """Full attention: every token sees every token of its clip."""
    return partial(_unmasked, attention)


def factorised_attention(attention: Attention, block_number: int) -> SelfAttend:
    """Attention within each frame in even blocks, and over time at each row and column in odd blocks (Latte, Ma et al. 2024)."""
    return partial(_masked, attention, (ALL, 0, 0) if block_number % 2 else (0, ALL, ALL), False)


def windowed_attention(attention: Attention, block_number: int, *, frames: int, rows: int, columns: int) -> SelfAttend:
    """Attention to tokens at most so far away, -1: no limit. Windows shrink at borders; in Hassani et al. (2023) they shift inwards."""
    refuse_reach((frames, rows, columns))
    return partial(_masked, attention, (frames, rows, columns), False)


def causal_attention(attention: Attention, block_number: int, *, frames: int) -> SelfAttend:
    """Attention to a token's own frame and the `frames` frames before it, -1 for all: for generating long videos frame by frame."""
    refuse_reach((frames, ALL, ALL))
    return partial(_masked, attention, (frames, ALL, ALL), True)


def _unmasked(attention: Attention, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    return attention(q, k, v, layout.segments, layout.segments)


def _masked(attention: Attention, reach: tuple[int, int, int], is_causal: bool, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    return attention(q, k, v, layout.segments, layout.segments, Mask(layout, reach, is_causal))
