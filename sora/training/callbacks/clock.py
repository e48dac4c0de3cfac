"""What stands beside the steps of a run: the account of its time, and the check that all ranks make the same run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer

from sora.system import distributed as ranks
from sora.training.logging.goodput import Goodput, Phases
from sora.training.module import TrainingModule


class StepTimer(Callback):
    """Tells the phases when a step begins and ends. The last of all callbacks, so that a step includes what the others do.

    every: seconds between writings of the account.
    """

    def __init__(self, phases: Phases, goodput: Goodput | None, *, every: float = 30.0) -> None:
        self.phases, self.goodput, self._every = phases, goodput, every
        self._written = time.monotonic()
        self._returns = 0  # of the run to earlier checkpoints, as far as the account knows

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._returns = pl_module.counters.returns
        if self.goodput is not None:
            self.goodput.write()  # one that is killed soon has been there all the same

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
    """Ends a run in which ranks differ in what they were given (`facts`: texts by name), before any has trained."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ranks.require_same(self._facts, pl_module.device)
