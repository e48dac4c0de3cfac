"""Alternatives to the norms of `sora.dit.dit`: modulated norms of tokens (dit.norm), and norms of queries and keys (dit.qk_norm)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.layers.rope import positive


class RmsNorm(nn.Module):
    """RMS norm without parameters (Zhang & Sennrich 2019), then scale and shift per token."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=self.eps), scale)


def rms_norm(width: int, *, eps: float) -> RmsNorm:
    """Build an `RmsNorm`, for dit.norm."""
    return RmsNorm(eps)


class AffineLayerNorm(nn.Module):
    """Layer norm with a gain and a bias per channel, then scale and shift per token."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gain, bias = self.gain.to(x.dtype), self.bias.to(x.dtype)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], gain, bias, self.eps), scale)


def affine_layer_norm(width: int, *, eps: float) -> AffineLayerNorm:
    """Build an `AffineLayerNorm`, for dit.norm."""
    return AffineLayerNorm(width, eps)


class AcrossHeads(nn.Module):
    """RMS norm over the channels of all heads together, with one gain for each channel of each head."""

    def __init__(self, heads: int, head_width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(heads * head_width)), positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))  # as in sora.dit.HeadNorm
        return F.rms_norm(wide.flatten(1), self.gain.shape, self.gain.to(wide.dtype), eps=self.eps).view_as(x).to(x.dtype)


def rms_across_heads(heads: int, head_width: int, *, eps: float) -> AcrossHeads:
    """Build an `AcrossHeads`, for dit.qk_norm."""
    return AcrossHeads(heads, head_width, eps)


class HeadLayerNorm(nn.Module):
    """Layer norm over each head's channels, with a gain and a bias per channel that all heads share."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))  # as in sora.dit.HeadNorm
        return F.layer_norm(wide, x.shape[-1:], self.gain.to(wide.dtype), self.bias.to(wide.dtype), self.eps).to(x.dtype)


def layer_norm_per_head(heads: int, head_width: int, *, eps: float) -> HeadLayerNorm:
    """Build a `HeadLayerNorm`, for dit.qk_norm."""
    return HeadLayerNorm(head_width, eps)


def no_norm(heads: int, head_width: int) -> nn.Identity:
    """Build an identity, for dit.qk_norm: queries and keys are not normalised."""
    return nn.Identity()
