"""Collectives with a gradient, for use within a forward pass: sums over ranks, and rows of a tensor of which each rank has a part.

A gradient is either whole, the same on every rank, or partial: the ranks' gradients are then terms of a sum. Each function says which kind
it takes in the backward pass and which it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from sora.system.torch_private import functional_operators as _ops

Exchange = Callable[[Tensor, ProcessGroup], Tensor]


def copied(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    """The tensors, equal on all ranks, which each uses for a part of a result. Backward: sums partial gradients to whole ones in one
    call."""
    learning = [value for value in tensors if value.requires_grad]
    if not (learning and torch.is_grad_enabled()):
        return list(tensors)
    made = iter(_Copied.apply(group, *learning))  # pyright: ignore[reportArgumentType]
    return [next(made) if value.requires_grad else value for value in tensors]


def gathered(x: Float[Tensor, "R ..."], group: ProcessGroup) -> Float[Tensor, "N ..."]:
    """The concatenated rows of all ranks (all-gather). Backward: partial gradients to whole gradients of this rank's rows."""
    return _Exchange.apply(x, group, _all_rows, _own_rows_of_sum)  # pyright: ignore[reportReturnType]


def scattered(x: Float[Tensor, "N ..."], group: ProcessGroup) -> Float[Tensor, "R ..."]:
    """This rank's rows of the sum over ranks (reduce-scatter). Backward: whole gradients of rows to whole gradients of all rows."""
    return _Exchange.apply(x, group, _own_rows_of_sum, _all_rows)  # pyright: ignore[reportReturnType]


def split(x: Float[Tensor, "N ..."], group: ProcessGroup) -> Float[Tensor, "R ..."]:
    """This rank's rows of a tensor that is equal on all ranks. Backward: whole gradients of rows to whole gradients of all rows."""
    return _Exchange.apply(x, group, _own_rows, _all_rows)  # pyright: ignore[reportReturnType]


def joined(x: Float[Tensor, "R ..."], group: ProcessGroup) -> Float[Tensor, "N ..."]:
    """All ranks' rows, for a computation that all repeat alike. Backward: whole gradients to those of this rank's rows."""
    return _Exchange.apply(x, group, _all_rows, _own_rows)  # pyright: ignore[reportReturnType]


def total(x: Float[Tensor, "..."], group: ProcessGroup) -> Float[Tensor, "..."]:
    """The sum over ranks, which each rank uses for its own part of a result. Backward: partial gradients to whole ones."""
    return _Exchange.apply(x, group, _sum, _sum)  # pyright: ignore[reportReturnType]


class _Copied(Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(False)  # a tensor that no rank used has no gradient, as in one process
        return tuple(value.view_as(value) for value in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        summed: list[Tensor | None] = list(grads)
        for dtype in dict.fromkeys(grad.dtype for grad in grads if grad is not None):
            places = [place for place, grad in enumerate(grads) if grad is not None and grad.dtype == dtype]
            flat = torch.cat([grads[place].flatten() for place in places])  # pyright: ignore[reportOptionalMemberAccess]
            sizes = [grads[place].numel() for place in places]  # pyright: ignore[reportOptionalMemberAccess]
            for place, part in zip(places, _sum(flat, ctx.group).split(sizes), strict=True):
                summed[place] = part.view_as(grads[place])  # pyright: ignore[reportArgumentType]
        return None, *summed


class _Exchange(Function):
    """A linear collective and its derivative; both are functions of a tensor and the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, exchange: Exchange, derivative: Exchange) -> Tensor:
        ctx.group, ctx.derivative = group, derivative
        return exchange(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.derivative(grads[0], ctx.group), None, None, None


def _sum(x: Tensor, group: ProcessGroup) -> Tensor:
    return _ops.wait_tensor(_ops.all_reduce(x.contiguous(), "sum", group.group_name))


def _all_rows(x: Tensor, group: ProcessGroup) -> Tensor:
    return _ops.wait_tensor(_ops.all_gather_into_tensor(x.contiguous(), group.size(), group.group_name))


def _own_rows_of_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    assert x.shape[0] % group.size() == 0, f"{x.shape[0]} rows do not divide over {group.size()} ranks"
    return _ops.wait_tensor(_ops.reduce_scatter_tensor(x.contiguous(), "sum", group.size(), group.group_name))


def _own_rows(x: Tensor, group: ProcessGroup) -> Tensor:
    assert x.shape[0] % group.size() == 0, f"{x.shape[0]} rows do not divide over {group.size()} ranks"
    return x.chunk(group.size())[group.rank()].clone()  # a clone, so that the rest can be freed
