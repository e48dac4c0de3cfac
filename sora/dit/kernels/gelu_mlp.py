"""An MLP as one custom op that saves only its input; the backward pass recomputes the hidden channels, in chunks of rows.

For blocks under activation checkpointing (`sora.training.recompute_all_but_attention`): the output of the MLP is saved and not recomputed.
The hidden channels, several times as wide as the tokens, are never in memory as a whole, which frees more than the saved output takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from sora.dit.kernels.fused import times

PARTS, ROWS = 8, 512  # number of chunks, and minimum rows per chunk, below which matrix products are slow


def gelu_mlp(
    x: Float[Tensor, "N D"],
    up: Float[Tensor, "F D"],
    up_bias: Float[Tensor, "F"],
    down: Float[Tensor, "C F"],
    down_bias: Float[Tensor, "C"],
) -> Float[Tensor, "N C"]:
    """gelu(x up^T + up_bias) down^T + down_bias, which saves only x for the backward pass. Respects autocast as linear layers do."""
    kind = x.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if cast else x.dtype
    return _op(*(value.to(dtype) for value in (x, up, up_bias, down, down_bias)))


def is_mlp(op: object) -> bool:
    """Whether an operator is `gelu_mlp`'s forward op."""
    return op is torch.ops.sora_mlp.gelu.default


def _parts(count: int) -> Iterator[slice]:
    rows = max(ROWS, -(-count // PARTS))
    return (slice(first, first + rows) for first in range(0, count, rows))


def _forward(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    out = x.new_empty(len(x), len(down))
    for rows in _parts(len(x)):
        out[rows] = times(F.gelu(times(x[rows], up.mT, up_bias)), down.mT, down_bias)
    return out


def _backward(grad: Tensor, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Gradients are accumulated over chunks in float32 or wider.
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_x, grad_up, grad_down = torch.empty_like(x), *(torch.zeros(value.shape, dtype=wide, device=x.device) for value in (up, down))
    grad_up_bias = torch.zeros(up_bias.shape, dtype=wide, device=x.device)
    for rows in _parts(len(x)):
        hidden = times(x[rows], up.mT, up_bias)
        _add(grad_down, grad[rows].mT, F.gelu(hidden))
        inner = times(grad[rows], down)
        torch.ops.aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
        del hidden
        _add(grad_up, inner.mT, x[rows])
        grad_up_bias += inner.sum(0, dtype=wide)
        grad_x[rows] = times(inner, up)
    sums = grad_up, grad_up_bias, grad_down, grad.sum(0, dtype=wide)
    return grad_x, *(value.to(x.dtype) for value in sums)  # pyright: ignore[reportReturnType]


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b."""
    _ = total.addmm_(a, b) if total.dtype == a.dtype else total.add_(times(a, b))


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return _op_backward(grad.contiguous(), *ctx.saved_tensors)


def _flops(ups: int, downs: int, *inputs: Any, out_val: object = None) -> int:
    """FLOPs of `ups` matrix products with `up` and `downs` with `down`. inputs: arguments of the forward or the backward op."""
    up = next(place for place, one in enumerate(inputs) if one.ndim == 1) - 1
    return 2 * inputs[up - 1].shape[0] * (ups * inputs[up].numel() + downs * inputs[up + 2].numel())


_op = torch.library.custom_op(
    "sora_mlp::gelu", _forward, mutates_args=(), schema="(Tensor x, Tensor up, Tensor up_bias, Tensor down, Tensor down_bias) -> Tensor"
)
_op_backward = torch.library.custom_op(
    "sora_mlp::gelu_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor up, Tensor up_bias, Tensor down) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_op.register_fake(lambda x, up, up_bias, down, down_bias: x.new_empty(x.shape[0], down.shape[0]))
_op_backward.register_fake(lambda grad, *inputs: tuple(map(_like, (*inputs, inputs[3][:, 0]))))
_op.register_autograd(_differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:4]))
# The backward pass has two products per matrix, and one more with `up` to recompute the hidden channels.
register_flop_formula(torch.ops.sora_mlp.gelu, get_raw=True)(partial(_flops, 1, 1))
register_flop_formula(torch.ops.sora_mlp.gelu_backward, get_raw=True)(partial(_flops, 3, 2))
