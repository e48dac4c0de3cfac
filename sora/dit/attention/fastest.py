"""The choice of who computes attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.dit.attention.chunked import chunked_attention
from sora.dit.attention.flex import flex_attention
from sora.dit.attention.layout import Attention, Mask
from sora.dit.attention.per_segment import per_segment_attention
from sora.dit.attention.varlen import HALVES, takes, varlen_attention
from sora.system.torch_private import multiplies_bfloat16
from sora.tokens import Segments

# Whether this CPU multiplies matrices of bfloat16 natively; for others torch emulates it, at a tenth of their speed in float32.
MULTIPLIES_BFLOAT16: bool = multiplies_bfloat16()


def fastest_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """The fastest backend that trains on the device and dtype of q, under that mask."""
    return fastest(q.device, q.dtype, q.shape[-1], masked=mask is not None)(q, k, v, q_segments, k_segments, mask)


def fastest(device: torch.device, dtype: torch.dtype, width: int, *, masked: bool) -> Attention:
    """On a GPU flash attention, or FlexAttention for masks, float32 and odd widths of heads; on a CPU what its units multiply best."""
    if device.type == "cuda":
        return varlen_attention if dtype in HALVES and takes(width) and not masked else flex_attention
    return chunked_attention if dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16 else per_segment_attention
