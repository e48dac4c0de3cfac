"""Exponential moving averages of the weights, which samples are generated from; training does not use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sora.runs.post_hoc_ema import gamma_of
from sora.system.torch_private import foreach_lerp_


def constant_decay(step: int, *, decay: float, warmup: float) -> float:
    """min(decay, (1 + step) / (warmup + step)): early weights are forgotten quickly (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + step) / (warmup + step))


def power_decay(step: int, *, gamma: float) -> float:
    """(1 - 1/step)^(gamma + 1): a profile whose width grows with training (Karras et al. 2024, eq. 127)."""
    return (1 - 1 / step) ** (gamma + 1)


class Averaging(Protocol):
    """An average that is updated from the weights in training. shadow: the averages to sample from, by parameter; empty if none are
    kept."""

    @property
    def shadow(self) -> dict[str, Tensor]: ...
    def follow(self, parameters: Mapping[str, Tensor]) -> None: ...
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None: ...
    def applied(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]: ...
    def kinds(self) -> dict[str, dict[str, Tensor]]: ...
    def widths(self) -> dict[str, float]: ...


@dataclass
class Average:
    """An average of named tensors with one decay rate. Its copies are fp32, on the parameters' devices and sharded like them.

    rate: the share of the average that is kept at update number `step`, counted from 1. None: no average, and no copy.
    """

    rate: Callable[[int], float] | None
    shadow: dict[str, Tensor] = field(default_factory=dict)

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Start at the present weights."""
        if self.rate is not None:
            self.shadow = {name: value.detach().clone().float() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Move towards the present weights, all tensors in one call."""
        if self.rate is None:
            return
        now = [parameters[name].detach() for name in self.shadow]
        now = [value if value.dtype == torch.float32 else value.float() for value in now]
        foreach_lerp_(list(self.shadow.values()), now, 1 - self.rate(step))

    def kinds(self) -> dict[str, dict[str, Tensor]]:
        """The tensors for a checkpoint, by kind."""
        return {"ema": self.shadow} if self.shadow else {}

    def widths(self) -> dict[str, float]:
        """The relative widths of the profiles that post-hoc EMA can combine: none."""
        return {}

    @contextmanager
    def applied(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """A context with the averaged weights in place of the trained ones, which are restored bit for bit."""
        trained = {name: parameters[name].detach().clone() for name in self.shadow}
        try:
            _copy(self.shadow, parameters)
            yield
        finally:
            _copy(trained, parameters)


class PostHoc:
    """Averages under several power-function profiles, from which any other is computed after training (Karras et al. 2024, section 3.2).

    widths: their relative widths, at least two; sampling uses the first by default.

    Raises:
        ValueError: fewer than two widths, duplicates, or a width that no such profile has.
    """

    def __init__(self, *, widths: Sequence[float]) -> None:
        if len(set(widths)) < max(2, len(widths)):
            raise ValueError(f"ema.widths={list(widths)}: other profiles are made of two different ones or more, such as [0.1, 0.05]")
        kinds = ["ema", *(f"ema_{number}" for number in range(2, len(widths) + 1))]
        self._widths = dict(zip(kinds, widths, strict=True))
        self._averages = {kind: Average(partial(power_decay, gamma=gamma_of(width))) for kind, width in self._widths.items()}

    @property
    def shadow(self) -> dict[str, Tensor]:
        return self._averages["ema"].shadow

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        for average in self._averages.values():
            average.follow(parameters)

    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        for average in self._averages.values():
            average.update(parameters, step)

    def applied(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return self._averages["ema"].applied(parameters)

    def kinds(self) -> dict[str, dict[str, Tensor]]:
        return {kind: average.shadow for kind, average in self._averages.items() if average.shadow}

    def widths(self) -> dict[str, float]:
        return dict(self._widths)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
