"""Custom ops `sora_attend::NAME` for attention backends, so that torch.compile, selective checkpointing and FLOP counters see one op each.

A backend defines a forward and a backward function of tensors; this module adds a fake kernel, autograd and a FLOP formula. The ops take
segment boundaries as tensors on the host (`sora.tokens.Segments`), so that no compiled graph depends on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sora.dit.attention.layout import EVERYWHERE, Mask
from sora.system.torch_private import OpOverload
from sora.tokens import Segments

NAMESPACE = "sora_attend"
PLACES = "Tensor q_host, Tensor k_host, Tensor q_cu, Tensor k_cu, Tensor? grids, int[] reach, bool causal"


@dataclass(frozen=True)
class Places:
    """Arguments of the ops that say which keys a query sees.

    q_host, k_host: `Segments.host`. q_cu, k_cu: `Segments.cu_seqlens`. grids: `Layout.grids`, None if no mask. reach, causal: see `Mask`.
    """

    q_host: Tensor
    k_host: Tensor
    q_cu: Tensor
    k_cu: Tensor
    grids: Tensor | None
    reach: list[int]
    causal: bool


# (q, k, v, places) -> (out, extra): extra is the log-sum-exp of the scores or another tensor that the backward needs
Forward = Callable[[Tensor, Tensor, Tensor, Places], tuple[Tensor, Tensor]]
# (grad, q, k, v, out, extra, places) -> the gradients of q, k, v
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Places], tuple[Tensor, Tensor, Tensor]]
# q -> an empty tensor with the shape and dtype of extra
Extra = Callable[[Tensor], Tensor]


def family_member(name: str, *, forward: Forward, backward: Backward, extra: Extra) -> Callable[..., tuple[Tensor, Tensor]]:
    """Register `sora_attend::NAME` and its backward, and return the op: (q, k, v, *places) -> (out, extra)."""
    op = torch.library.custom_op(
        f"{NAMESPACE}::{name}",
        lambda q, k, v, *places: forward(q, k, v, Places(*places)),
        mutates_args=(),
        schema=f"(Tensor q, Tensor k, Tensor v, {PLACES}) -> (Tensor, Tensor)",
    )
    op_backward = torch.library.custom_op(
        f"{NAMESPACE}::{name}_backward",
        lambda grad, q, k, v, out, extra, *places: backward(grad, q, k, v, out, extra, Places(*places)),
        mutates_args=(),
        schema=f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor extra, {PLACES}) -> (Tensor, Tensor, Tensor)",
    )
    op.register_fake(lambda q, k, v, *places: (_like(q), extra(q)))
    op_backward.register_fake(lambda grad, q, k, v, out, extra, *places: (_like(q), _like(k), _like(v)))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, v, *tensors = inputs[:8]
        ctx.reach, ctx.causal = inputs[8:]
        ctx.save_for_backward(q, k, v, *output, *tensors)

    def differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        q, k, v, out, extra, *tensors = ctx.saved_tensors
        return *op_backward(grad, q, k, v, out, extra, *tensors, ctx.reach, ctx.causal), *[None] * 7

    op.register_autograd(differentiate, setup_context=remember)
    # Two matrix products in the forward pass, five in the backward pass, one of which recomputes the scores.
    products = {name: 2, f"{name}_backward": 5}
    for member, count in products.items():
        register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), member), get_raw=True)(partial(_flops, count))
    return op


def _flops(products: int, *inputs: Any, out_val: object = None) -> int:
    """FLOPs of `products` matrix products over the visible pairs of queries and keys. inputs: arguments of the op or of its backward."""
    *tensors, q_host, k_host, _, __, grids, reach, causal = inputs
    q = tensors[0]  # in the backward, the gradient of the output, which has the same shape
    return 2 * products * pairs(Places(q_host, k_host, q, q, grids, reach, causal)) * q.shape[1] * q.shape[2]


def pairs(places: Places) -> int:
    """Number of pairs of a query and a key that it sees."""
    if places.grids is None:
        return int((places.q_host.diff() * places.k_host.diff()).sum())
    # A mask limits each axis independently, so the number of pairs of a clip is the product over its axes.
    return sum(
        prod(_pairs_of(size, far, axis == 0 and places.causal) for axis, (size, far) in enumerate(zip(grid, places.reach, strict=True)))
        for grid in places.grids.tolist()
    )


def _pairs_of(size: int, reach: int, causal: bool) -> int:
    """Number of pairs (i, j) in 0..size - 1 with |i - j| <= reach, and j <= i if causal."""
    far = size - 1 if reach == EVERYWHERE else min(reach, size - 1)
    before = far * size - far * (far + 1) // 2  # pairs with j below i
    return size + before * (1 if causal else 2) if size else 0


def places(q_segments: Segments, k_segments: Segments, mask: Mask | None) -> tuple:
    """Arguments of an op after q, k and v, in the order of `Places`."""
    grids, reach, causal = (None, [EVERYWHERE] * 3, False) if mask is None else (mask.layout.grids, list(mask.reach), mask.causal)
    return q_segments.host, k_segments.host, q_segments.cu_seqlens, k_segments.cu_seqlens, grids, reach, causal


def is_attention(op: object) -> bool:
    """Whether an operator is one of the `sora_attend` ops or FlexAttention."""
    flex = torch.ops.higher_order.flex_attention
    return op is flex or (isinstance(op, OpOverload) and op.namespace == NAMESPACE)


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
