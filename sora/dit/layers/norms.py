"""Other norms than those of `sora.dit.dit`: of tokens, which are modulated, and of queries and keys."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.layers.rope import positive


class RmsNorm(nn.Module):
    """x over its root mean square (Zhang & Sennrich 2019), scaled and shifted; without gains of its own."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=self.eps), scale)


def rms_norm(width: int, *, eps: float) -> RmsNorm:
    """dit.norm: see `RmsNorm`."""
    return RmsNorm(eps)


class AffineLayerNorm(nn.Module):
    """A layer norm with a gain and a bias per channel, then scaled and shifted."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gain, bias = self.gain.to(x.dtype), self.bias.to(x.dtype)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], gain, bias, self.eps), scale)


def affine_layer_norm(width: int, *, eps: float) -> AffineLayerNorm:
    """dit.norm: see `AffineLayerNorm`."""
    return AffineLayerNorm(width, eps)


class AcrossHeads(nn.Module):
    """RMS norm of all heads' channels together, with a gain for each channel of each head."""

    def __init__(self, heads: int, head_width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(heads * head_width)), positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))  # as in sora.dit.HeadNorm
        return F.rms_norm(wide.flatten(1), self.gain.shape, self.gain.to(wide.dtype), eps=self.eps).view_as(x).to(x.dtype)


def rms_across_heads(heads: int, head_width: int, *, eps: float) -> AcrossHeads:
    """dit.qk_norm: see `AcrossHeads`."""
    return AcrossHeads(heads, head_width, eps)


class HeadLayerNorm(nn.Module):
    """A layer norm of each head's channels, with one gain and one bias per channel that all heads share."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))  # as in sora.dit.HeadNorm
        return F.layer_norm(wide, x.shape[-1:], self.gain.to(wide.dtype), self.bias.to(wide.dtype), self.eps).to(x.dtype)


def layer_norm_per_head(heads: int, head_width: int, *, eps: float) -> HeadLayerNorm:
    """dit.qk_norm: see `HeadLayerNorm`."""
    return HeadLayerNorm(head_width, eps)


def no_norm(heads: int, head_width: int) -> nn.Identity:
    """dit.qk_norm: queries and keys as they are projected."""
    return nn.Identity()
