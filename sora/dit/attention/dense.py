"""Attention by its formula, with a mask over the whole pack: the reference that the backends are tested against, on any device."""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sora.dit.attention.layout import Mask, sees
from sora.tokens import Segments


def dense_attention(
    q: Float[Tensor, "N H E"],
    k: Float[Tensor, "M K E"],
    v: Float[Tensor, "M K E"],
    q_segments: Segments,
    k_segments: Segments,
    mask: Mask | None = None,
) -> Float[Tensor, "N H E"]:
    """softmax(q k / sqrt(E)) v under an N x M mask; memory is quadratic in the tokens of the pack."""
    seen = allowed(q_segments, k_segments, mask).to(q.device)
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = torch.einsum("nhe,mhe->hnm", q, k) / sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)  # a row without keys is all NaN
    return torch.einsum("hnm,mhe->nhe", weights, v)


def allowed(q_segments: Segments, k_segments: Segments, mask: Mask | None) -> Bool[Tensor, "N M"]:
    """Boolean mask: True where a query sees a key."""
    owner_q, owner_k = (torch.arange(one.count).repeat_interleave(one.host.diff()) for one in (q_segments, k_segments))
    seen = owner_q[:, None] == owner_k[None, :]
    if mask is not None:
        places = mask.layout.coordinates.to(seen.device)
        seen &= sees(places, places, reach=mask.reach, causal=mask.causal)
    return seen
