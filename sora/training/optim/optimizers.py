"""Optimisers over named parameters. Each function returns the list of optimisers that step together.

Weight decay applies to matrices, not to biases, norms and tables. scales: of single parameters, by name, from a parametrisation
(`sora.dit.mup`); None for no scaling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import AdamW, Optimizer

from sora.dit.mup import Scale, scale_of
from sora.runs.shards import boxes
from sora.system.terminal import counted


def adamw(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scales: Mapping[str, Scale] | None = None,
) -> list[Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) on all parameters, in its fused form."""
    _refuse(betas, lr=lr, eps=eps, weight_decay=weight_decay)
    return [_adamw(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, scales=scales)]


def muon(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    iterations: int,
    within: str,
    splits: Mapping[str, int],
    other_lr: float,
    betas: tuple[float, float],
    eps: float,
    scales: Mapping[str, Scale] | None = None,
) -> list[Optimizer]:
    """Muon on the weight matrices of the blocks, and AdamW at `other_lr` on the rest (embeddings, tables, the output layer, biases).

    within: the part of a name that marks a block's parameter, as in "blocks.". splits: name parts of stacked matrices, with the number of
    matrices ({"qkv": 3}); each of them is orthogonalised separately.

    Raises:
        ValueError: no matrix has `within` in its name.
    """
    _refuse(betas, lr=lr, other_lr=other_lr, momentum=momentum, eps=eps, weight_decay=weight_decay)
    matrices = {name: value for name, value in parameters.items() if within in name and name.endswith("weight") and value.ndim == 2}
    if not matrices:
        raise ValueError(f"no weight matrix has {within!r} in its name, so Muon has nothing to do; change optimizer.within or use adamw")
    rest = {name: value for name, value in parameters.items() if name not in matrices}
    groups = [
        {"params": [value], "parts": _parts(name, value, splits), "lr": lr * scale.muon, "weight_decay": weight_decay / scale.muon}
        for name, value in matrices.items()
        for scale in [scale_of(scales, name)]
    ]
    first = Muon(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, iterations=iterations)
    if not rest:
        return [first]
    return [first, _adamw(rest, lr=other_lr, betas=betas, eps=eps, weight_decay=weight_decay, scales=scales)]


def _refuse(betas: Sequence[float], **numbers: float) -> None:
    """Raise ValueError, naming the key, for numbers that no optimiser can use."""
    for key, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"optimizer.{key}={value} must be a number of 0 or more")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas={list(betas)}: each is from 0 to below 1")


def _parts(name: str, value: Tensor, splits: Mapping[str, int]) -> int:
    parts = next((count for piece, count in splits.items() if piece in name), 1)
    if value.shape[0] % parts:
        raise ValueError(f"{name} has {counted(value.shape[0], 'row')}, which are not {parts} stacked matrices; change optimizer.splits")
    return parts


def _adamw(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scales: Mapping[str, Scale] | None,
) -> AdamW:
    """One group for each pair of rate and decay. The group with the unscaled rate comes first, because its rate is logged."""
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for name, value in parameters.items():
        scale, decays = scale_of(scales, name), value.ndim >= 2 and name.endswith("weight")
        groups.setdefault((lr * scale.adam, decays, weight_decay * scale.decay if decays else 0.0), []).append(value)
    told = [{"params": groups[key], "lr": key[0], "weight_decay": key[2]} for key in sorted(groups, reverse=True)]
    return AdamW(told, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


class Muon(Optimizer):
    """Momentum with an orthogonalised update (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

    Unlike `torch.optim.Muon`, it iterates in fp32 on a CPU, where bf16 may be emulated, processes matrices of one shape in one batch, and
    treats a fused projection as several matrices.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float, iterations: int) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        alike: dict[tuple, list[tuple[Tensor, Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(value.grad)
                buffer = state["momentum_buffer"].lerp_(value.grad, 1 - group["momentum"])
                update = torch.lerp(value.grad, buffer, group["momentum"])  # Nesterov momentum
                where = (value.device_mesh, value.placements) if isinstance(value, DTensor) else value.device
                alike.setdefault((tuple(value.shape), group["parts"], group["iterations"], where), []).append((value, update, group))
        for (shape, parts, iterations, _), members in alike.items():
            turned = _turned([update for _, update, _ in members], parts=parts, iterations=iterations)
            scale = math.sqrt(max(1.0, shape[0] / parts / shape[1]))
            for (value, _, group), update in zip(members, turned, strict=True):
                value.mul_(1 - group["lr"] * group["weight_decay"])
                value.add_(update, alpha=-group["lr"] * scale)


def _turned(updates: Sequence[Tensor], *, parts: int, iterations: int) -> Sequence[Tensor]:
    """Orthogonalise tensors of one shape, each a stack of `parts` matrices. Ranks that share them in shards each process some whole
    ones."""
    first = updates[0]
    if not isinstance(first, DTensor):
        return _whole_turned(torch.stack(list(updates)), parts=parts, iterations=iterations).unbind()
    assert all(isinstance(update, DTensor) for update in updates)
    stack = torch.stack([update.redistribute(placements=boxes(update)) for update in updates])  # pyright: ignore
    mesh, dealt = first.device_mesh, [Shard(0)] * first.device_mesh.ndim
    mine = _whole_turned(stack.redistribute(placements=dealt).to_local(), parts=parts, iterations=iterations)
    turned = DTensor.from_local(mine, mesh, dealt, run_check=False, shape=stack.shape, stride=stack.stride())
    each = turned.redistribute(placements=stack.placements).unbind()
    return [update.redistribute(placements=first.placements) for update in each]


def _whole_turned(stack: Float[Tensor, "K R C"], *, parts: int, iterations: int) -> Float[Tensor, "K R C"]:
    return orthogonalise(stack.unflatten(1, (parts, -1)).flatten(0, 1), iterations=iterations).unflatten(0, (-1, parts)).flatten(1, 2)


def orthogonalise(matrices: Tensor, *, iterations: int) -> Tensor:
    """Bring every singular value near 1 by the quintic Newton-Schulz iteration; (K, R, C) -> (K, R, C).

    After five iterations they lie between about 0.7 and 1.2, because the coefficients favour fast growth of small ones over exactness.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)
