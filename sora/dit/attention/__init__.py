"""Attention inside the segments of a packed axis: one signature (`sora.dit.attention.layout.Attention`), and one place that chooses who
computes it.

`fastest_attention` takes the fastest backend that trains on the device and dtype of the queries; `dit.attention` can name each
backend too.
"""
