"""Exponential moving averages of the weights: what is sampled from, never what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


def constant(step: int, *, decay: float, warmup: float) -> float:
    """min(decay, (1 + step) / (warmup + step)): early weights are forgotten fast (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + step) / (warmup + step))


def power(step: int, *, gamma: float) -> float:
    """(1 - 1/step)^(gamma + 1): a profile whose width grows with training (Karras et al. 2024, eq. 127)."""
    return (1 - 1 / step) ** (gamma + 1)


@dataclass
class Average:
    """An average of named tensors under one rate. It keeps fp32 copies wherever the parameters live, sharded if they are.

    rate: how much of the average is kept at update number `step`, the first being 1. None follows the weights exactly and keeps no copy.
    """

    rate: Callable[[int], float] | None
    shadow: dict[str, Tensor] = field(default_factory=dict)

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin at the present weights."""
        if self.rate is not None:
            self.shadow = {name: value.detach().clone().float() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Move towards the present weights, all tensors in one call."""
        if self.rate is None:
            return
        now = [parameters[name].detach() for name in self.shadow]
        now = [value if value.dtype == torch.float32 else value.float() for value in now]
        torch._foreach_lerp_(list(self.shadow.values()), now, 1 - self.rate(step))

    @contextmanager
    def applied(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The averaged weights in place of the trained ones, which are put back bit for bit."""
        trained = {name: parameters[name].detach().clone() for name in self.shadow}
        try:
            _copy(self.shadow, parameters)
            yield
        finally:
            _copy(trained, parameters)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
