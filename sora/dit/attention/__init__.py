"""Attention inside the segments of a packed axis: one signature (`sora.dit.layout.Attention`), and one place that chooses who computes it.

`attend` takes the fastest backend that trains on the device and dtype of the queries; each backend can be named as `dit.attention` too.
"""

from sora.dit.attention.chunked import chunked
from sora.dit.attention.dense import dense
from sora.dit.attention.fastest import attend
from sora.dit.attention.flash import flash
from sora.dit.attention.flex import flex
from sora.dit.attention.per_segment import per_segment
from sora.dit.attention.varlen import varlen

__all__ = ["attend", "chunked", "dense", "flash", "flex", "per_segment", "varlen"]
