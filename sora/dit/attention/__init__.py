"""Attention inside the segments of a packed axis: one signature (`sora.dit.layout.Attention`), and one place that chooses who computes it.

`fastest_attention` takes the fastest backend that trains on the device and dtype of the queries; `dit.attention` can name each
backend too.
"""

from sora.dit.attention.chunked import chunked_attention
from sora.dit.attention.dense import dense_attention
from sora.dit.attention.fastest import fastest_attention
from sora.dit.attention.flash import flash_attention
from sora.dit.attention.flex import flex_attention
from sora.dit.attention.per_segment import per_segment_attention
from sora.dit.attention.varlen import varlen_attention

__all__ = [
    "chunked_attention",
    "dense_attention",
    "fastest_attention",
    "flash_attention",
    "flex_attention",
    "per_segment_attention",
    "varlen_attention",
]
