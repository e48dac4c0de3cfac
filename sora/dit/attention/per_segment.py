"""Attention by torch's flash attention kernel for the CPU, called once per tile."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.layout import Mask
from sora.dit.attention.op import Places, family_member, places
from sora.dit.attention.tiles import Tile, tiles
from sora.system.torch_private import cpu_flash_attention, cpu_flash_attention_backward
from sora.tokens import Segments


def per_segment_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention on the CPU: the fastest backend in float32; in bfloat16 it rounds less than `chunked_attention`."""
    if q.is_cuda:
        raise ValueError(
            "per_segment attention runs on the CPU, the model is on a GPU; choose dit.attention._target_=sora.dit.fastest_attention"
        )
    return _op(q, k, v, *places(q_segments, k_segments, mask))[0]


def _forward(q: Tensor, k: Tensor, v: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    out, logsumexp = torch.zeros(q.shape, dtype=q.dtype), _extra(q)
    for tile in tiles(places):
        o, lse = cpu_flash_attention(*_inputs(tile, q, k, v), attn_mask=_added(tile, places, q))
        tile.queries.put(out, o)
        tile.queries.put(logsumexp, lse)
    return out, logsumexp


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, places: Places
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.zeros(q.shape, dtype=q.dtype), torch.zeros(k.shape, dtype=k.dtype), torch.zeros(v.shape, dtype=v.dtype)
    for tile in tiles(places):
        inputs = [*_inputs(tile, q, k, v), tile.queries.read(out)]
        # In float32 or wider: the kernel's backward multiplies in the dtype of its inputs, and CPUs without bf16 products emulate those.
        outer, *inputs = (x.to(logsumexp.dtype) for x in (tile.queries.read(grad), *inputs))
        parts = cpu_flash_attention_backward(
            *(outer, *inputs, tile.queries.read(logsumexp), 0.0, False), attn_mask=_added(tile, places, outer)
        )
        tile.queries.put(grads[0], parts[0])
        for whole, part in zip(grads[1:], parts[1:], strict=True):
            tile.keys.add(whole, part.unflatten(1, (whole.shape[1], -1)).sum(2) if part.shape[1] != whole.shape[1] else part)
    return grads


def _inputs(tile: Tile, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (batch, H, L, E), keys and values (batch, H, S, E) of a tile, with one key head per query head, as the kernel requires."""
    repeats = q.shape[1] // k.shape[1]
    keys, values = tile.keys.read(k), tile.keys.read(v)
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    return tile.queries.read(q), keys, values


def _added(tile: Tile, places: Places, q: Tensor) -> Tensor | None:
    """Additive mask of a tile, 0 or -inf, of shape (1, 1, L, S); None if every query sees every key."""
    seen = tile.mask(places)
    return None if seen is None else torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -torch.inf)[None, None]


def _extra(q: Tensor) -> Tensor:
    """Zeros for the log-sum-exp of the scores, (N, H)."""
    return torch.zeros(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)


_op = family_member("per_segment", forward=_forward, backward=_backward, extra=_extra)
