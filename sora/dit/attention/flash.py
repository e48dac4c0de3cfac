"""Attention by the flash-attn package (Dao 2023), if it is installed; `varlen` needs torch only."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.layout import Mask
from sora.dit.attention.op import Places, family_member, places
from sora.dit.attention.varlen import longest, refuse_elsewhere
from sora.tokens import Segments


def flash_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention within segments of any lengths, on CUDA in half precision. Raises ValueError for a mask."""
    refuse_elsewhere("flash", q, mask)
    _package()
    return _op(q, k, v, *places(q_segments, k_segments, mask))[0]


def _package() -> ModuleType:
    """Import the flash_attn_interface module. Raises ValueError before version 2.7, which had other arguments and outputs."""
    try:
        from flash_attn import __version__, flash_attn_interface  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"flash attention needs the package flash-attn ({error}): pip install flash-attn --no-build-isolation, with a torch for CUDA;"
            " or choose dit.attention._target_=sora.dit.varlen_attention, which is built into torch"
        ) from None
    if tuple(map(int, __version__.split(".")[:2])) < (2, 7):
        raise ValueError(
            f"flash attention needs flash-attn 2.7 or later, here is {__version__}: pip install -U flash-attn --no-build-isolation"
        )
    return flash_attn_interface


def _forward(q: Tensor, k: Tensor, v: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    out, logsumexp, *_ = _package()._flash_attn_varlen_forward(
        *(q, k, v, places.q_cu, places.k_cu, longest(places.q_host), longest(places.k_host)),
        dropout_p=0.0,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=False,
    )
    return out, logsumexp


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, places: Places
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _package()._flash_attn_varlen_backward(
        *(grad.contiguous(), q, k, v, out, logsumexp, *grads),
        *(places.q_cu, places.k_cu, longest(places.q_host), longest(places.k_host)),
        dropout_p=0.0,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=False,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return grads


def _extra(q: Tensor) -> Tensor:
    """Empty tensor for the log-sum-exp of the scores, (H, N)."""
    return torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)


_op = family_member("flash", forward=_forward, backward=_backward, extra=_extra)
