"""Callbacks for the record of a run's time, and for the check that all ranks make the same run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer

from sora.system import distributed as ranks
from sora.training.logging.goodput import Goodput, Phases
from sora.training.module import TrainingModule


class StepTimer(Callback):
    """Records when a step begins and ends. It must be the last callback, so that a step includes the work of the others.

    every: seconds between writes of the record.
    """

    def __init__(self, phases: Phases, goodput: Goodput | None, *, every: float = 30.0) -> None:
        self.phases, self.goodput, self._every = phases, goodput, every
        self._written = time.monotonic()
        self._returns = 0  # returns to earlier checkpoints that the record has

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._returns = pl_module.counters.returns
        if self.goodput is not None:
            self.goodput.write()  # so that a process that is killed soon is recorded

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.phases.enter("step", pl_module.counters.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        counters = pl_module.counters
        self.phases.enter("data", counters.step)
        if self.goodput is not None and counters.returns > self._returns:
            self.goodput.undo(counters.returned_to, counters.returned_at)
        self._returns = counters.returns
        if self.goodput is not None and time.monotonic() - self._written >= self._every:
            self._written = time.monotonic()
            self.goodput.write()


class Alike(Callback):
    """Ends a run before training if ranks differ in `facts` (texts by name)."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ranks.require_same(self._facts, pl_module.device)
