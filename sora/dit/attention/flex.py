"""Attention under any mask by FlexAttention (Dong et al. 2024): compiled kernels on a GPU; on a CPU the forward pass only, for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, reduce
from operator import and_
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sora.dit.attention.layout import EVERYWHERE, Mask
from sora.tokens import Segments

BLOCK = 128  # side, in tokens, of the blocks of queries and keys that the kernels compute or skip as a whole
PAIRS = 1 << 26  # pairs of a query and a key per part of the block mask: all pairs of 100,000 tokens would take 10 GB and more


def flex_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention under `mask` by FlexAttention; the block mask is computed once for all blocks of the network with the same mask."""
    if not q.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(
            "flex attention trains on CUDA only, the model is on the CPU; choose dit.attention._target_=sora.dit.fastest_attention, which "
            "computes every dit.pattern there"
        )
    kernel = _compiled() if q.is_cuda and not torch.compiler.is_compiling() else _kernel()
    block_mask = block_mask_of(q_segments, k_segments, mask, len(q), len(k))
    out = kernel(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def _kernel() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled() -> Callable:
    """FlexAttention compiled by itself, for use outside a compiled network: uncompiled it would allocate the whole matrix of scores.

    Its second call with another length makes that length dynamic, which joint axes of tokens and words need: they change in every pack.
    """
    return torch.compile(_kernel())


def block_mask_of(q_segments: Segments, k_segments: Segments, mask: Mask | None, queries: int, keys: int) -> Any:
    """FlexAttention's `BlockMask` for `queries` x `keys` tokens, cached unless a compiler is tracing."""
    found = _block_mask if torch.compiler.is_compiling() else _remembered
    return found(q_segments, k_segments, mask, queries, keys)


def _block_mask(q_segments: Segments, k_segments: Segments, mask: Mask | None, queries: int, keys: int) -> Any:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    device = q_segments.cu_seqlens.device
    seen = mask_mod(_owners(q_segments, queries), _owners(k_segments, keys), mask)
    if torch.compiler.is_compiling():  # compiled code never allocates the matrix of pairs, so no parts are needed
        return create_block_mask(seen, B=None, H=None, Q_LEN=queries, KV_LEN=keys, device=device)
    rows = max(1, PAIRS // max(1, keys) // BLOCK) * BLOCK
    parts = [
        create_block_mask(_from(first, seen), B=None, H=None, Q_LEN=min(rows, queries - first), KV_LEN=keys, device=device)
        for first in range(0, queries, rows)
    ]
    lists = ([part.kv_num_blocks, part.kv_indices, part.full_kv_num_blocks, part.full_kv_indices] for part in parts)
    whole = (torch.cat(pieces, dim=2) for pieces in zip(*lists, strict=True))
    return BlockMask.from_kv_blocks(*whole, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(queries, keys))


def _from(first: int, seen: Callable) -> Callable:
    return lambda batch, head, query, key: seen(batch, head, query + first, key)


# All blocks of a network use the same one or two masks in turn. The cache compares segments and layouts by identity.
_remembered = lru_cache(maxsize=4)(_block_mask)


def _owners(segments: Segments, count: int) -> Int[Tensor, "N"]:
    places = torch.arange(count, device=segments.cu_seqlens.device, dtype=torch.int32)
    return torch.searchsorted(segments.cu_seqlens, places, right=True) - 1


def mask_mod(q_owners: Int[Tensor, "N"], k_owners: Int[Tensor, "M"], mask: Mask | None) -> Callable:
    """`mask_mod` for FlexAttention: whether a query sees a key, given by index, in the same segment and as `layout.sees` says."""
    # Lambdas, because FlexAttention inspects and traces these functions, which fails for functions that jaxtyping has wrapped under pytest.
    same = lambda batch, head, query, key: q_owners[query] == k_owners[key]  # noqa: E731
    if mask is None:
        return same
    frames, rows, columns = (axis.contiguous() for axis in mask.layout.coordinates.unbind(1))
    limits = [(axis, far) for axis, far in zip((frames, rows, columns), mask.reach, strict=True) if far != EVERYWHERE]
    near = lambda batch, head, query, key: reduce(  # noqa: E731
        and_, [(axis[query] - axis[key]).abs() <= far for axis, far in limits], same(batch, head, query, key)
    )
    if not mask.causal:
        return near
    return lambda batch, head, query, key: near(batch, head, query, key) & (frames[key] <= frames[query])
