"""Choice of the attention backend by device, dtype, head width and mask."""

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

# Whether this CPU has native bfloat16 matrix products; on others torch emulates them at a tenth of the speed of float32.
MULTIPLIES_BFLOAT16: bool = multiplies_bfloat16()


def fastest_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """Attention by the fastest backend that supports training on the device and dtype of q with this mask."""
    return fastest(q.device, q.dtype, q.shape[-1], masked=mask is not None)(q, k, v, q_segments, k_segments, mask)


def fastest(device: torch.device, dtype: torch.dtype, width: int, *, masked: bool) -> Attention:
    """Fastest backend for queries of this device, dtype and head width.

    On a GPU it is flash attention, or FlexAttention for masks, float32, and head widths that flash attention does not support. On a CPU it
    is `chunked_attention` for bfloat16 with native products, else `per_segment_attention`.
    """
    if device.type == "cuda":
        return varlen_attention if dtype in HALVES and takes(width) and not masked else flex_attention
    return chunked_attention if dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16 else per_segment_attention
