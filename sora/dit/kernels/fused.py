"""Steps of a block that keep little for the backward: what is cheap to compute again from what is kept anyway is computed again.

Each is the plain formula of its docstring with its derivative beside it. Dtypes mix as they do there, so that under mixed precision the
tokens stay in float32 where tables are. Compilers see through these steps; selective checkpointing does too.
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
    """layer_norm(x) * scale[index] + shift[index]; keeps x."""
    return _Modulate.apply(x, scale, shift, index, eps)  # pyright: ignore[reportReturnType]


def gated_sum(
    x: Float[Tensor, "N D"], branch: Float[Tensor, "N D"], gate: Float[Tensor, "U D"], index: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + gate[index] * branch; keeps the branch."""
    return _GatedSum.apply(x, branch, gate, index)  # pyright: ignore[reportReturnType]


def fused_linear(x: Float[Tensor, "N C"], weight: Float[Tensor, "D C"], bias: Float[Tensor, "D"] | None) -> Float[Tensor, "N D"]:
    """x weight^T + bias; of halves on a CPU that does not multiply them, in float32, which is ten times faster than to emulate it."""
    return _Linear.apply(x, weight, bias) if _emulated(x) else F.linear(x, weight, bias)  # pyright: ignore[reportReturnType]


def gelu_linear(x: Float[Tensor, "N C"], weight: Float[Tensor, "D C"], bias: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
    """linear(gelu(x)); keeps x."""
    return _GeluLinear.apply(x, weight.to(x.dtype), bias.to(x.dtype))  # pyright: ignore[reportReturnType]


def norm_rotate(
    x: Float[Tensor, "N K E"], gain: Float[Tensor, "E"], rotation: Complex[Tensor, "N J E2"] | None, *, eps: float
) -> Float[Tensor, "N K E"]:
    """rms_norm of each head times the gain, then each pair (x[2i], x[2i + 1]) turned by its angle, in float32; keeps x.

    rotation: a unit complex number for each pair, None for none.
    """
    return _NormRotate.apply(x, gain, rotation, eps)  # pyright: ignore[reportReturnType]


class _Modulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, index: Tensor, eps: float) -> Tensor:
        normed, mean, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, mean, rate, scale, index)
        # An embedding rather than an index: its gradient is a sorted sum, quick on a CPU and deterministic on a GPU.
        return torch.addcmul(F.embedding(index, shift), normed, F.embedding(index, scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, mean, rate, scale, index) = grads, ctx.saved_tensors
        normed = torch.native_layer_norm(x, x.shape[-1:], None, None, ctx.eps)[0]
        inner = (grad * F.embedding(index, scale)).to(x.dtype)
        grad_x = torch.ops.aten.native_layer_norm_backward(inner, x, x.shape[-1:], mean, rate, None, None, [True, False, False])[0]
        del inner  # memory is short here when blocks are computed again
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
        # One tensor as large as x at a time: this is where a step needs the most memory.
        grad_weight, grad_x = times(grad.mT, F.gelu(x)), times(grad, weight)
        return torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x), grad_weight, grad.sum(0)


def _emulated(x: Tensor) -> bool:
    """Whether torch would emulate products of this dtype."""
    return x.dtype in (torch.bfloat16, torch.float16) and x.device.type == "cpu" and not MULTIPLIES_BFLOAT16


def times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, as in `linear`."""
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
        back = _turned(grad.to(wide.dtype).contiguous(), rotation, back=True)  # some attention gives strided ones
        inner = back * gain
        grad_x = torch.addcmul(inner, normed, (inner * normed).mean(-1, keepdim=True), value=-1).mul_(rate)
        return grad_x.to(x.dtype), (back * normed).sum((0, 1)).to(gain.dtype), None, None


def _rate(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)  # a square is a power, and slow


def _turned(x: Tensor, rotation: Tensor | None, *, back: bool) -> Tensor:
    """Each pair times its complex number, or its conjugate."""
    if rotation is None:
        return x
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which makes no code of complex numbers
        (first, second), (cosine, sine) = pairs.unbind(-1), torch.view_as_real(rotation).unbind(-1)
        sine = -sine if back else sine
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * (rotation.conj() if back else rotation)).flatten(-2)


def _gathered(grads: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """The sum of the rows that came from each row of a table."""
    return torch.ops.aten.embedding_dense_backward(grads, index, table.shape[0], -1, False).to(table.dtype)
