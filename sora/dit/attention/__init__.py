"""Attention within the segments of a packed axis: several backends with one signature (`sora.dit.attention.layout.Attention`).

`fastest_attention`, the default of the key dit.attention, chooses the fastest backend for the device and dtype of the queries. The key can
also name a backend.
"""
