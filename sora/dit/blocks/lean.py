"""`sora.dit.Block` built from the operations of `sora.dit.kernels.fused`, which save fewer activations for the backward pass."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from sora.dit.dit import Context, CrossAttention, GeluMlp, HeadNorm, LayerNorm, Parts, SelfAttention
from sora.dit.kernels.fused import fused_linear, gated_sum, gelu_linear, modulate, norm_rotate
from sora.dit.kernels.gelu_mlp import gelu_mlp

T = TypeVar("T", bound=nn.Module)


class LeanBlock(nn.Module):
    """Same weights and same output as `sora.dit.Block`, with less memory for the backward pass.

    frugal: whether the MLP saves only its input (`sora.dit.kernels.gelu_mlp`); for use under activation checkpointing.

    Raises:
        ValueError: the norms or the MLP are not layer_norm, rms_per_head and gelu of `sora.dit.dit`; no others are fused.
    """

    joint: ClassVar[bool] = False
    frugal: bool = False

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm1, self.norm2 = (_of_kind(LayerNorm, parts.norm(parts.width), "dit.norm") for _ in range(2))
        self.attention = SelfAttention(number, parts)
        self.cross = CrossAttention(parts)
        self.mlp = _of_kind(GeluMlp, parts.mlp(), "dit.mlp")
        for norm in (self.attention.q_norm, self.attention.k_norm, self.cross.q_norm, self.cross.k_norm):
            _of_kind(HeadNorm, norm, "dit.qk_norm")

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        levels = context.levels
        table = levels.modulation + self.table if self.own is None else levels.modulation + self.table + self.own(levels.level)
        scale1, shift1, gate1, scale2, shift2, gate2 = table.chunk(6, dim=-1)  # U D
        y = modulate(x, scale1, shift1, levels.index, eps=self.norm1.eps)
        x = gated_sum(x, self._self(y, context), gate1, levels.index)
        x = x + self._cross(x, text, context)
        y = modulate(x, scale2, shift2, levels.index, eps=self.norm2.eps)
        return gated_sum(x, self._mlp(y), gate2, levels.index), text

    def _self(self, x: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        attention = self.attention
        if attention.heads == attention.kv_heads:
            q, k, v = _through(attention.qkv, x).unflatten(-1, (3, attention.heads, -1)).unbind(1)  # N H E
        else:
            q = _through(attention.q, x).unflatten(-1, (attention.heads, -1))
            k, v = _through(attention.kv, x).unflatten(-1, (2, attention.kv_heads, -1)).unbind(1)
        q, k = _normed(attention.q_norm, q, context.rotation), _normed(attention.k_norm, k, context.rotation)
        return _through(attention.out, attention.attend(q, k, v, context.layout).flatten(1))

    def _cross(self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context) -> Float[Tensor, "N D"]:
        cross = self.cross
        q = _through(cross.q, x).unflatten(-1, (cross.heads, -1))
        k, v = _through(cross.kv, text).unflatten(-1, (2, cross.heads, -1)).unbind(1)  # M H E
        q, k = _normed(cross.q_norm, q, None), _normed(cross.k_norm, k, None)
        return _through(cross.out, cross.attention(q, k, v, context.layout.segments, context.text_segments).flatten(1))

    def _mlp(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        up, down = self.mlp.up, self.mlp.down
        if self.frugal:
            return gelu_mlp(x, up.weight, up.bias, down.weight, down.bias)
        return gelu_linear(_through(up, x), down.weight, down.bias)

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates and zero output of the cross-attention."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def lean_block(number: int, parts: Parts) -> LeanBlock:
    """Build a `LeanBlock`, for dit.block."""
    return LeanBlock(number, parts)


def _through(layer: nn.Module, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
    assert isinstance(layer, nn.Linear)
    return fused_linear(x, layer.weight, layer.bias)


def _normed(norm: nn.Module, x: Float[Tensor, "N K E"], rotation: Complex[Tensor, "N J E2"] | None) -> Float[Tensor, "N K E"]:
    assert isinstance(norm, HeadNorm)
    return norm_rotate(x, norm.gain, rotation, eps=norm.eps)


def _of_kind(kind: type[T], module: nn.Module, key: str) -> T:
    if not isinstance(module, kind):
        raise ValueError(
            f"dit.block._target_=sora.dit.lean_block fuses sora.dit.layer_norm, rms_per_head and gelu, and {key} gives a "
            f"{type(module).__name__};"
            " choose dit.block._target_=sora.dit.cross_block for it"
        )
    return module
