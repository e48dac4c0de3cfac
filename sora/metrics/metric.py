"""What this room's torchmetrics classes have in common, so that they behave in other people's loops as torchmetrics says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

Figures = Mapping[str, float]


class VideoMetric(Metric):
    """A metric whose compute() gives plain numbers by name. settings: torchmetrics' own, such as `sync_on_compute` or `process_group`.

    compute() asks all ranks each time: a rank that had no update since the last one would answer from memory (`compute_with_cache`),
    while the others wait for it. set_dtype() changes what values are kept in, but for the states named in `exact`: counts, sizes, and
    sums that would lose digits.
    """

    full_state_update = False
    is_differentiable = False
    exact: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ("n",)  # of figures, those that only count

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"compute_with_cache": False, **settings})

    def plot(self, val: Figures | Sequence[Figures] | None = None, ax: Any = None) -> Any:
        """Draw what compute() gave, or a list of that over time; compute it where nothing is given. Returns matplotlib's (figure, axes)."""
        found = self.compute() if val is None else val
        if isinstance(found, Mapping):
            return self._plot({name: torch.tensor(found[name], dtype=torch.float64) for name in self.drawn(found)}, ax)
        common = [name for name in self.drawn(found[0]) if all(name in each for each in found)]
        return self._plot([{name: torch.tensor(each[name], dtype=torch.float64) for name in common} for each in found], ax)

    def drawn(self, figures: Figures) -> list[str]:
        """The names of the figures that are drawn on one axis: all but counts."""
        return [name for name in figures if name not in self.undrawn]

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Any:
        super()._apply(fn, (*exclude_state, *self.exact))
        for name in self.exact:  # to another device, but in no other dtype
            value, default = getattr(self, name), self._defaults[name]
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else [each.to(self.device) for each in value])
            self._defaults[name] = default.to(self.device) if isinstance(default, Tensor) else default
        return self


class TwoSided(VideoMetric):
    """A metric between real and generated clips, which come by update(…, real=…) in batches of one side each."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError: a batch is of one side, and has no distance of its own."""
        raise ValueError(f"{type(self).__name__}: a batch of one side has no distance; call update(…, real=…) and, at the end, compute()")
