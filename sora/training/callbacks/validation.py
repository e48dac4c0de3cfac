"""Validation while training, after given numbers of samples, with averaged weights, and without any effect on training.

RUN/evaluation.jsonl has a line for each evaluation and kind of weights: step, samples, seconds, and the figures of all measures. A resumed
run first removes the lines of steps that it will make again. An evaluation that would exceed its share of all time is postponed; one that
does exceed it is stopped, and its figures are dropped. It is also stopped if a signal asks the run to stop: only minutes are left then, and
the last steps are not saved yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sora.runs.jsonl import MetricsLog, read
from sora.runs.run import Run
from sora.system import distributed as ranks
from sora.system import global_rng as rng
from sora.training.callbacks.journal import Journal
from sora.training.logging.goodput import Phases
from sora.training.logging.tracker import NoTracker, Tracker
from sora.training.module import TrainingModule

FILE = "evaluation.jsonl"
TOLD = ("loss", "adherence_all", "frechet_over_floor", "caption_loss", "answers_all", "short_all", "dense_all")  # on the terminal
PAUSE = 10  # steps after which a postponed evaluation is tried again
Figures = dict[str, Any]
Weights = Callable[[TrainingModule], AbstractContextManager[object]]


@runtime_checkable
class ValidationMeasure(Protocol):
    """One kind of measurement. Every rank takes part in all of it, and yields as often as the others."""

    def begin(self, module: TrainingModule, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Read what it needs, before training. earlier: the existing lines."""
        ...

    def work(self, module: TrainingModule, weights: str) -> Generator[float, None, Figures]:
        """Measure the present weights in pieces: yields the share that is done, and returns the figures, equal on all ranks.

        weights: their name, such as "ema". The network is in eval mode, without gradients.
        """
        ...


def allowance(seconds: Mapping[str, float], share: float | None) -> float:
    """The seconds that evaluations may still take in a process that spent `seconds` in its phases. share: None for no limit."""
    return math.inf if share is None else share * sum(seconds.values()) - seconds["evaluation"]


class Evaluations(Callback):
    """Runs its measures every `every` samples, and at the last step.

    share: of all time that evaluations may take; None for no limit. weights: by name, contexts that put the weights to measure in place.
    steps: of the whole run. journal: gets the figures; its clock stops meanwhile. stop: whether this rank was asked to stop; if one was,
    all stop.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int,
        share: float | None,
        weights: Mapping[str, Weights],
        measures: Sequence[ValidationMeasure],
        steps: int,
        phases: Phases,
        journal: Journal,
        tracker: Tracker | NoTracker,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if every < 1:
            raise ValueError(f"evaluation.every={every} must be at least 1; it is samples between evaluations")
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"evaluation.share={share} is a share of all time, above 0 and up to 1; or null for no limit")
        self._run, self._every, self._share, self._weights, self._measures = run, every, share, dict(weights), list(measures)
        self._steps, self._phases, self._journal, self._tracker = steps, phases, journal, tracker
        self._stop = stop
        self._log = MetricsLog(run.folder / FILE)
        self._expected = 0.0  # seconds, from the last evaluation
        self._mark = self._step = self._again = 0
        self._told = self._asked = False

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if trainer.is_global_zero:
            self._log.rewind(pl_module.counters.step)
        ranks.together()
        earlier = read(self._log.path)
        if earlier:
            self._mark, self._step = earlier[-1]["samples"] // self._every, earlier[-1]["step"]
        for measure in self._measures:
            measure.begin(pl_module, earlier)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        report, counters = pl_module.report, pl_module.counters
        assert report is not None
        mark, last = counters.samples // self._every, counters.step >= self._steps
        due = mark > self._mark or (last and counters.step > self._step)
        if not due or (counters.step < self._again and not last) or (report.stop and not last):
            return
        with self._phases.during("evaluation"):
            done = self._evaluate(trainer, pl_module)
        self._journal.stood_still()
        if done:
            self._mark, self._step, self._told = mark, counters.step, False
        else:
            self._again = counters.step + PAUSE
            self._put_off(last)

    def _evaluate(self, trainer: Trainer, module: TrainingModule) -> bool:
        """Run all measures under all weights; return False if there is no time for it."""
        began, left = time.monotonic(), allowance(self._phases.seconds(), self._share)
        if not self._agreed(left >= self._expected and left > 0, module):
            return False
        lines, parts = [], len(self._weights) * len(self._measures)
        for number, (name, put) in enumerate(self._weights.items()):
            since = time.monotonic()
            figures: Figures = {}
            with put(module), undisturbed(trainer, module):
                for place, measure in enumerate(self._measures):
                    found = self._through(measure.work(module, name), module, until=began + left)
                    if not isinstance(found, dict):
                        done = (number * len(self._measures) + place + found) / parts
                        self._expected = (time.monotonic() - began) / max(done, 1 / 64)
                        return False
                    figures |= found
            lines.append({"weights": name, "seconds": round(time.monotonic() - since, 3), **figures})
        self._expected = time.monotonic() - began
        if trainer.is_global_zero:
            self._write(module, lines)
        return True

    def _through(self, work: Generator[float, None, Figures], module: TrainingModule, *, until: float) -> Figures | float:
        """The figures of a measure, or the share of it that was done when the time was over."""
        while True:
            try:
                done = next(work)
            except StopIteration as end:
                return end.value
            self._phases.enter("evaluation")  # progress, from which the watchdog counts again
            asked = bool(ranks.highest(int(self._stop()), module.device))
            if asked or (self._share is not None and not self._agreed(time.monotonic() <= until, module)):
                self._asked = asked
                work.close()
                return done

    def _agreed(self, mine: bool, module: TrainingModule) -> bool:
        """The first rank's decision, on every rank."""
        return bool(ranks.highest(int(mine and ranks.first()), module.device))

    def _write(self, module: TrainingModule, lines: Sequence[Figures]) -> None:
        counters = module.counters
        for line in lines:
            if not self._log.write({"step": counters.step, "samples": counters.samples, "tokens": counters.tokens, **line}):
                self._journal.say(f"{self._log.path} cannot be written ({self._log.problem}); training goes on without it")
            prefix = "evaluation" if line["weights"] == "ema" else f"evaluation/{line['weights']}"
            numbers = {name: value for name, value in line.items() if isinstance(value, int | float) and math.isfinite(value)}
            self._tracker.log(counters.step, {f"{prefix}/{name}": value for name, value in numbers.items()})
            for number, path in enumerate(line.get("videos", ())):
                self._tracker.media(counters.step, f"{prefix}/video/{number}", self._run.folder / path, path)
        told = ", ".join(f"{name} {lines[0][name]:.4g}" for name in TOLD if name in lines[0])
        self._journal.say(f"step {counters.step} evaluated in {sum(line['seconds'] for line in lines):.1f} s: {told}")

    def _put_off(self, last: bool) -> None:
        if not self._told and ranks.first():
            self._told = True
            when = "the last evaluation is left out" if last else "the evaluation that is due is put off"
            slow = f"it takes about {self._expected:.0f} s, more than evaluation.share={self._share} of the time so far"
            self._journal.say(f"{when}: {'the run was asked to stop' if self._asked else slow}")


@contextmanager
def undisturbed(trainer: Trainer, module: TrainingModule) -> Iterator[None]:
    """A context in eval mode, without gradients, in the precision of training; modes and random states are restored afterwards."""
    task = module.task
    modes, states = {each: each.training for each in task.modules()}, rng.capture()
    task.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        gather_anew(task)
        for each, mode in modes.items():
            each.training = mode
        rng.restore(states)


def gather_anew(task: nn.Module) -> None:
    """Free whole weights that FSDP has gathered, because they would be used again although their shards have changed."""
    for each in task.modules():
        if isinstance(each, FSDPModule):
            each.reshard()
