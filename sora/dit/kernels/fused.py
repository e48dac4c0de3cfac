"""Operations of a block that save little for the backward pass and recompute what is cheap from the saved tensors.

Each is the formula of its docstring with a hand-written gradient. Dtypes are promoted as in the formula, so that under mixed precision
tokens stay in float32 if the tables are in float32. torch.compile and selective checkpointing see the operations inside.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from sora.dit.attention.fastest import MULTIPLIES_BFLOAT16


def modulate(
    x: Float[Tensor, "N D"], scale: Float[Tensor, "U D"], shift: Float[Tensor, "U D"], index: Int[Tensor, "N"], *, eps: float
) -> Float[Tensor, "N D"]:
    """layer_norm(x) * scale[index] + shift[index]; saves x for the backward pass."""
    return _Modulate.apply(x, scale, shift, index, eps)  # pyright: ignore[reportReturnType]


def gated_sum(
    x: Float[Tensor, "N D"], branch: Float[Tensor, "N D"], gate: Float[Tensor, "U D"], index: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + gate[index] * branch; saves `branch` for the backward pass."""
    return _GatedSum.apply(x, branch, gate, index)  # pyright: ignore[reportReturnType]


def fused_linear(x: Float[Tensor, "N C"], weight: Float[Tensor, "D C"], bias: Float[Tensor, "D"] | None) -> Float[Tensor, "N D"]:
    """x weight^T + bias; computed in float32 for half precision on a CPU without such products, where emulation is ten times slower."""
    return _Linear.apply(x, weight, bias) if _emulated(x) else F.linear(x, weight, bias)  # pyright: ignore[reportReturnType]


def gelu_linear(x: Float[Tensor, "N C"], weight: Float[Tensor, "D C"], bias: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
    """linear(gelu(x)); saves x for the backward pass."""
    return _GeluLinear.apply(x, weight.to(x.dtype), bias.to(x.dtype))  # pyright: ignore[reportReturnType]


def norm_rotate(
    x: Float[Tensor, "N K E"], gain: Float[Tensor, "E"], rotation: Complex[Tensor, "N J E2"] | None, *, eps: float
) -> Float[Tensor, "N K E"]:
    """RMS norm of each head times the gain, then a rotation of each pair (x[2i], x[2i + 1]), in float32; saves x for the backward pass.

    rotation: one complex number for each pair; None for no rotation.
    """
    return _NormRotate.apply(x, gain, rotation, eps)  # pyright: ignore[reportReturnType]


class _Modulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, index: Tensor, eps: float) -> Tensor:
        normed, mean, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, mean, rate, scale, index)
        # F.embedding and not indexing: its backward is fast on a CPU and deterministic on a GPU.
        return torch.addcmul(F.embedding(index, shift), normed, F.embedding(index, scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, mean, rate, scale, index) = grads, ctx.saved_tensors
        normed = torch.native_layer_norm(x, x.shape[-1:], None, None, ctx.eps)[0]
        inner = (grad * F.embedding(index, scale)).to(x.dtype)
        grad_x = torch.ops.aten.native_layer_norm_backward(inner, x, x.shape[-1:], mean, rate, None, None, [True, False, False])[0]
        del inner  # to lower the memory peak, which is here under activation checkpointing
        return grad_x, _gathered(grad * normed, index, scale), _gathered(grad, index, scale), None, None


class _GatedSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gate: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(branch, gate, index)
        ctx.dtype = x.dtype
        return torch.addcmul(x, F.embedding(index, gate), branch)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (branch, gate, index) = grads, ctx.saved_tensors
        return grad.to(ctx.dtype), (grad * F.embedding(index, gate)).to(branch.dtype), _gathered(grad * branch, index, gate), None


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return times(x, weight.mT, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        return times(grad, weight), times(grad.mT, x), grad.sum(0) if ctx.has_bias else None


class _GeluLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return times(F.gelu(x), weight.mT, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        # At most one temporary as large as x at a time: the memory peak of a training step is here.
        grad_weight, grad_x = times(grad.mT, F.gelu(x)), times(grad, weight)
        return torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x), grad_weight, grad.sum(0)


def _emulated(x: Tensor) -> bool:
    """Whether torch would emulate matrix products of x's dtype on this CPU."""
    return x.dtype in (torch.bfloat16, torch.float16) and x.device.type == "cpu" and not MULTIPLIES_BFLOAT16


def times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, computed in float32 where half precision would be emulated."""
    if _emulated(a):
        return _wide(a, b, bias).to(a.dtype)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _wide(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.float() @ b.float() if bias is None else torch.addmm(bias.float(), a.float(), b.float())


class _NormRotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, rotation: Tensor | None, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, gain, rotation)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return _turned(wide * _rate(wide, eps) * gain, rotation, back=False).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, gain, rotation) = grads, ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = _rate(wide, ctx.eps)
        normed = wide * rate
        back = _turned(grad.to(wide.dtype).contiguous(), rotation, back=True)  # some attention backends return strided gradients
        inner = back * gain
        grad_x = torch.addcmul(inner, normed, (inner * normed).mean(-1, keepdim=True), value=-1).mul_(rate)
        return grad_x.to(x.dtype), (back * normed).sum((0, 1)).to(gain.dtype), None, None


def _rate(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)  # x * x and not x.square(), which is slower


def _turned(x: Tensor, rotation: Tensor | None, *, back: bool) -> Tensor:
    """Each pair of channels times its complex number, or times the conjugate if `back`."""
    if rotation is None:
        return x
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile generates no code for complex numbers
        (first, second), (cosine, sine) = pairs.unbind(-1), torch.view_as_real(rotation).unbind(-1)
        sine = -sine if back else sine
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * (rotation.conj() if back else rotation)).flatten(-2)


def _gathered(grads: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """Gradient of a table: for each of its rows, the sum of the rows of `grads` with its index."""
    return torch.ops.aten.embedding_dense_backward(grads, index, table.shape[0], -1, False).to(table.dtype)
