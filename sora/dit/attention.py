"""Attention inside the segments of a packed axis: one signature, and one place that chooses who computes it.

    attend(q, k, v, q_segments, k_segments) -> o

q (N, H, E) meets k, v (M, H, E) of the same segment only: segment g of the queries sees segment g of the keys, so that self-attention
gives the same segments twice and cross-attention a caption for each clip. A segment without keys gives 0. Scores are divided by sqrt(E).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from sora.tokens import Segments

Attention = Callable[[Tensor, Tensor, Tensor, Segments, Segments], Tensor]


def attend(
    q: Float[Tensor, "N H E"], k: Float[Tensor, "M H E"], v: Float[Tensor, "M H E"], q_segments: Segments, k_segments: Segments
) -> Float[Tensor, "N H E"]:
    """The fastest backend that trains on the device of q."""
    backend = varlen if q.is_cuda else per_segment
    return backend(q, k, v, q_segments, k_segments)


def varlen(
    q: Float[Tensor, "N H E"], k: Float[Tensor, "M H E"], v: Float[Tensor, "M H E"], q_segments: Segments, k_segments: Segments
) -> Float[Tensor, "N H E"]:
    """Variable-length flash attention as built into torch; CUDA and half precision only."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"varlen attention runs on CUDA in bfloat16 or float16, the model is on {q.device.type} in {q.dtype};"
            " choose dit.attention=sora.dit.attention.attend or a trainer with bf16 precision"
        )
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, q_segments.cu_seqlens, k_segments.cu_seqlens, q_segments.longest, k_segments.longest)
    assert isinstance(out, Tensor)
    return out


def dense(
    q: Float[Tensor, "N H E"], k: Float[Tensor, "M H E"], v: Float[Tensor, "M H E"], q_segments: Segments, k_segments: Segments
) -> Float[Tensor, "N H E"]:
    """The formula itself under a mask of N x M, quadratic in the pack: the reference that the others are tested against."""
    owner_q = torch.arange(len(q_segments.lengths)).repeat_interleave(torch.tensor(q_segments.lengths))
    owner_k = torch.arange(len(k_segments.lengths)).repeat_interleave(torch.tensor(k_segments.lengths))
    stranger = (owner_q[:, None] != owner_k[None, :]).to(q.device)
    scores = torch.einsum("nhe,mhe->hnm", q, k) / sqrt(q.shape[-1])
    weights = scores.masked_fill(stranger, -torch.inf).softmax(-1).nan_to_num(0.0)  # a row without keys is all NaN
    return torch.einsum("hnm,mhe->nhe", weights, v)


def per_segment(
    q: Float[Tensor, "N H E"], k: Float[Tensor, "M H E"], v: Float[Tensor, "M H E"], q_segments: Segments, k_segments: Segments
) -> Float[Tensor, "N H E"]:
    """torch's flash attention for the CPU, once for every run of neighbours of equal lengths."""
    if q.device.type != "cpu":
        raise ValueError(
            f"per_segment attention runs on the CPU, the model is on {q.device.type}; choose dit.attention=sora.dit.attention.attend"
        )
    out, _ = _per_segment(q, k, v, list(q_segments.lengths), list(k_segments.lengths))
    return out


@lru_cache(maxsize=1024)
def _runs(q_lengths: tuple[int, ...], k_lengths: tuple[int, ...]) -> tuple[tuple[slice, slice, int], ...]:
    """(queries, keys, segments) of each run of neighbours that have equal lengths, so that one call computes them together."""
    runs: list[tuple[slice, slice, int]] = []
    start_q = start_k = 0
    previous = (0, 0)
    for length_q, length_k in zip(q_lengths, k_lengths, strict=True):
        queries, keys = slice(start_q, start_q + length_q), slice(start_k, start_k + length_k)
        start_q, start_k = queries.stop, keys.stop
        if length_q and length_k:
            count = 1
            if previous == (length_q, length_k):
                before_q, before_k, before = runs.pop()
                queries, keys, count = slice(before_q.start, start_q), slice(before_k.start, start_k), before + 1
            runs.append((queries, keys, count))
        previous = (length_q, length_k)
    return tuple(runs)


def _fold(packed: Tensor, where: slice, segments: int) -> Tensor:
    """(N, H, ...) -> (segments, H, L, ...), a view of the tokens of one run."""
    # One as_strided instead of a slice, an unflatten and a transpose: a step makes thousands of these views.
    length, stride = (where.stop - where.start) // segments, packed.stride()
    size = (segments, packed.shape[1], length, *packed.shape[2:])
    start = packed.storage_offset() + where.start * stride[0]
    return packed.as_strided(size, (length * stride[0], stride[1], stride[0], *stride[2:]), start)


_LENGTHS = "int[] q_lengths, int[] k_lengths"


@torch.library.custom_op(
    "sora::per_segment_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor q, Tensor k, Tensor v, {_LENGTHS}) -> (Tensor, Tensor)",
)
def _per_segment(q: Tensor, k: Tensor, v: Tensor, q_lengths: list[int], k_lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The output and the log-sum-exp of the scores (N, H). One op for all segments: autograd, checkpointing and counters see one."""
    out, logsumexp = torch.zeros_like(q), q.new_zeros(q.shape[:2])
    for queries, keys, count in _runs(tuple(q_lengths), tuple(k_lengths)):
        parts = (_fold(q, queries, count), _fold(k, keys, count), _fold(v, keys, count))
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)
        _fold(out, queries, count).copy_(o)
        _fold(logsumexp, queries, count).copy_(lse)
    return out, logsumexp


@torch.library.custom_op(
    "sora::per_segment_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_LENGTHS}) -> (Tensor, Tensor, Tensor)",
)
def _per_segment_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, q_lengths: list[int], k_lengths: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys, count in _runs(tuple(q_lengths), tuple(k_lengths)):
        places = (queries, keys, keys)
        inputs = [_fold(item, place, count) for item, place in zip((q, k, v), places, strict=True)]
        results = [_fold(item, queries, count) for item in (out, lse)]
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _fold(grad, queries, count), *inputs, *results, 0.0, False
        )
        for whole, part, place in zip(grads, parts, places, strict=True):
            _fold(whole, place, count).copy_(part)
    return grads


@_per_segment.register_fake
def _(q, k, v, q_lengths, k_lengths):
    return torch.empty_like(q), q.new_empty(q.shape[:2])


@_per_segment_backward.register_fake
def _(grad, q, k, v, out, lse, q_lengths, k_lengths):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx, inputs, output) -> None:
    q, k, v, ctx.q_lengths, ctx.k_lengths = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, grad, _):
    return *_per_segment_backward(grad, *ctx.saved_tensors, ctx.q_lengths, ctx.k_lengths), None, None


_per_segment.register_autograd(_differentiate, setup_context=_remember)
