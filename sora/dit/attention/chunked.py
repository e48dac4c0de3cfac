"""Attention by matrix products over chunks of queries, with attention weights recomputed in the backward pass: for bfloat16 on a CPU.

torch's flash attention reaches a quarter of the throughput of the CPU's bf16 matrix units; large matrix products reach most of it. Scores
are rounded to bfloat16 before the softmax, so queries and keys must be normalised. `per_segment` rounds less.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.layout import Mask
from sora.dit.attention.op import Places, family_member, places
from sora.dit.attention.tiles import tiles
from sora.system.torch_private import softmax_backward
from sora.tokens import Segments

SCORES = 1 << 20  # maximum number of scores per chunk, so that they stay in a core's cache until they are used


def chunked_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention on any device and in any dtype; the fastest backend in bfloat16 on a CPU with native bfloat16 products."""
    return _op(q, k, v, *places(q_segments, k_segments, mask))[0]


def _forward(q: Tensor, k: Tensor, v: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for tile in tiles(places):
        queries, keys, values = tile.queries.read(q), _flat(tile.keys.read(k)), _flat(tile.keys.read(v))
        where, mask = tile.queries.of(out), tile.mask(places)
        parts = [_apart(_weights(_chunk(queries, rows, k), keys, mask, rows) @ values, queries) for rows in _chunks(queries, keys.shape[1])]
        where.copy_(torch.cat(parts, dim=2).unflatten(2, where.shape[2:4]))
    return out, _extra(q)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, _: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    # Gradients are accumulated over chunks in float32 or wider.
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (k, v))
    for tile in tiles(places):
        queries, keys, values = tile.queries.read(q), _flat(tile.keys.read(k)), _flat(tile.keys.read(v))
        outer, mask, parts = tile.queries.read(grad), tile.mask(places), []
        sums = torch.zeros(keys.shape, dtype=wide, device=q.device), torch.zeros(keys.shape, dtype=wide, device=q.device)
        for rows in _chunks(queries, keys.shape[1]):
            chunk, slope = _chunk(queries, rows, k), _chunk(outer, rows, k, scale=1.0)
            weights = _weights(chunk, keys, mask, rows)
            sums[1].add_(weights.mT @ slope)
            scores = softmax_backward(slope @ values.mT, weights, -1, q.dtype)
            sums[0].add_(scores.mT @ chunk)
            parts.append(_apart((scores @ keys).mul_(q.shape[-1] ** -0.5), queries))
        tile.queries.put(grad_q, torch.cat(parts, dim=2))
        for whole, part in zip((grad_k, grad_v), sums, strict=True):
            tile.keys.add(whole, part.unflatten(0, (tile.keys.batch, k.shape[1])))
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _chunks(queries: Tensor, keys: int) -> list[slice]:
    """Split the L queries of a tile into ranges of at most `SCORES` scores each, but of at least 32 queries."""
    batch, heads, length, _ = queries.shape
    rows = min(length, max(32, SCORES // (batch * heads * keys)))
    return [slice(first, min(first + rows, length)) for first in range(0, length, rows)]


def _chunk(queries: Tensor, rows: slice, k: Tensor, scale: float | None = None) -> Tensor:
    """Queries `rows` of (batch, H, L, E) as (batch * K, H / K * c, E), times scale (None: 1 / sqrt(E)); heads of a key head stacked."""
    chunk = queries[:, :, rows].unflatten(1, (k.shape[1], -1)) * (queries.shape[-1] ** -0.5 if scale is None else scale)
    return chunk.flatten(2, 3).flatten(0, 1)


def _apart(chunk: Tensor, queries: Tensor) -> Tensor:
    """Inverse of the reshape in `_chunk`: (batch, H, c, E)."""
    batch, heads, _, width = queries.shape
    return chunk.reshape(batch, heads, -1, width)


def _flat(keys: Tensor) -> Tensor:
    """Reshape (batch, K, S, E) to (batch * K, S, E), contiguous, so that not every chunk's product makes its own copy."""
    return keys.flatten(0, 1).contiguous()


def _weights(chunk: Tensor, keys: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
    """Attention weights of a chunk: the softmax of its scores. mask: (L, S), True where a query of the tile sees a key."""
    scores = chunk @ keys.mT
    if mask is not None:
        unseen = ~mask[rows].to(scores.device)
        scores.masked_fill_(unseen.repeat(scores.shape[1] // len(unseen), 1), -torch.inf)
    return scores.softmax(-1)


def _extra(q: Tensor) -> Tensor:
    """Empty tensor: the backward pass needs no output of the forward pass."""
    return torch.empty(0, dtype=q.dtype, device=q.device)


_op = family_member("chunked", forward=_forward, backward=_backward, extra=_extra)
