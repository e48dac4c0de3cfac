"""Base classes of this room's torchmetrics metrics, so that they behave in other training loops as torchmetrics documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

Figures = Mapping[str, float]


class VideoMetric(Metric):
    """A metric whose compute() returns plain numbers by name. settings: torchmetrics' own, such as `sync_on_compute` or `process_group`.

    compute() synchronises each time: with torchmetrics' cache (`compute_with_cache`) a rank without updates since the last call would
    answer from memory while the others wait for it. set_dtype() changes the type of the states, except for those named in `exact`: counts,
    sizes, and sums that would lose digits.
    """

    full_state_update = False
    is_differentiable = False
    exact: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ("n",)  # results that are not drawn, since they only count

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"compute_with_cache": False, **settings})

    def plot(self, val: Figures | Sequence[Figures] | None = None, ax: Any = None) -> Any:
        """Draw results of compute(), one or a list over time; without any, compute them. Returns matplotlib's (figure, axes)."""
        found = self.compute() if val is None else val
        if isinstance(found, Mapping):
            return self._plot({name: torch.tensor(found[name], dtype=torch.float64) for name in self.drawn(found)}, ax)
        common = [name for name in self.drawn(found[0]) if all(name in each for each in found)]
        return self._plot([{name: torch.tensor(each[name], dtype=torch.float64) for name in common} for each in found], ax)

    def drawn(self, figures: Figures) -> list[str]:
        """The names of the results to draw on one axis: all but counts."""
        return [name for name in figures if name not in self.undrawn]

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Any:
        super()._apply(fn, (*exclude_state, *self.exact))
        for name in self.exact:  # moved to another device, but not cast
            value, default = getattr(self, name), self._defaults[name]
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else [each.to(self.device) for each in value])
            self._defaults[name] = default.to(self.device) if isinstance(default, Tensor) else default
        return self


class TwoSided(VideoMetric):
    """A metric between real and generated clips, which are given by update(…, real=…) in batches of one side each."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ValueError: a batch has one side, so it has no distance of its own."""
        raise ValueError(f"{type(self).__name__}: a batch of one side has no distance; call update(…, real=…) and, at the end, compute()")
