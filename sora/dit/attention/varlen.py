"""Attention by torch's built-in variable-length flash attention, on CUDA in half precision."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.layout import Mask
from sora.dit.attention.op import Places, family_member, places
from sora.system.torch_private import varlen_attention_backward
from sora.tokens import Segments

HALVES = (torch.bfloat16, torch.float16)


def varlen_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention within segments of any lengths, on CUDA in half precision. Raises ValueError for a mask."""
    refuse_elsewhere("varlen", q, mask)
    return _op(q, k, v, *places(q_segments, k_segments, mask))[0]


def attention_shapes(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """`varlen_attention` without its checks, for FakeTensors of any device, to estimate the memory and FLOPs of a training step on a GPU.

    Masks are allowed: FlexAttention, which a GPU uses for them, saves tensors of the same size for the backward pass.
    """
    return _op(q, k, v, *places(q_segments, k_segments, mask))[0]


def _forward(q: Tensor, k: Tensor, v: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    shared = q.shape[1] // k.shape[1]  # query heads per key head
    known: dict[str, Any] = {"enable_gqa": True} if shared > 1 and _shares_heads() else {}
    if shared > 1 and not known:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    out, logsumexp = varlen_attn(
        *(q, k, v, places.q_cu, places.k_cu, longest(places.q_host), longest(places.k_host)), return_aux=AuxRequest(lse=True), **known
    )
    return out, logsumexp


@cache
def _shares_heads() -> bool:
    """Whether this version of torch (from 2.12 on) supports fewer key heads than query heads."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, places: Places
) -> tuple[Tensor, Tensor, Tensor]:
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # random state of dropout, which is never used
    lengths, shared = (longest(places.q_host), longest(places.k_host)), q.shape[1] // k.shape[1]
    apart = shared > 1 and not _shares_heads()
    if apart:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    of_q, of_k, of_v = varlen_attention_backward(
        grad.contiguous(), q, k, v, out, logsumexp, places.q_cu, places.k_cu, *lengths, False, unused, None, [-1, -1]
    )
    if apart:
        of_k, of_v = (x.unflatten(1, (-1, shared)).sum(dim=2) for x in (of_k, of_v))
    return of_q, of_k, of_v


def takes(width: int) -> bool:
    """Whether flash attention kernels support heads of this width."""
    return width % 8 == 0 and width <= 256


def refuse_elsewhere(kind: str, q: Tensor, mask: Mask | None) -> None:
    """Raise ValueError if flash attention kernels cannot run: with a mask, off CUDA, not in half precision, unsupported head width."""
    if mask is not None:
        raise ValueError(
            f"{kind} attention knows no masks; choose dit.attention._target_=sora.dit.fastest_attention, or "
            "dit.pattern._target_=sora.dit.full_attention"
        )
    if not q.is_cuda or q.dtype not in HALVES:
        raise ValueError(
            f"{kind} attention runs on CUDA in bfloat16 or float16, the model is on {q.device.type} in {q.dtype};"
            " choose dit.attention._target_=sora.dit.fastest_attention or a trainer with bf16 precision"
        )
    if not takes(q.shape[-1]):
        raise ValueError(
            f"{kind} attention takes heads whose width is a multiple of 8 up to 256, and dit.width / dit.heads is {q.shape[-1]};"
            " choose dit.attention._target_=sora.dit.fastest_attention, or other heads"
        )


def longest(host: Tensor) -> int:
    """Number of tokens of the longest segment. host: `Segments.host`."""
    return int(host.diff().max())


def _extra(q: Tensor) -> Tensor:
    """Empty tensor for the log-sum-exp of the scores, (H, N)."""
    return torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)


_op = family_member("varlen", forward=_forward, backward=_backward, extra=_extra)
