"""What surrounds the training step: the record of it, and the checkpoints. Lightning calls these; the memory is ours."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch import Callback, Trainer

from sora.training import checkpoint, ranks, rng, state
from sora.training.checkpoint import TrainingState
from sora.training.metrics import MetricsLog
from sora.training.module import Report, TrainingModule
from sora.training.phases import Phases
from sora.training.progress import Progress
from sora.training.run import Run
from sora.training.signals import StopFlag
from sora.training.tracker import NoTracker, Tracker


class Journal(Callback):
    """Writes metrics.jsonl and events.jsonl, and shows progress.

    every: steps between lines; a line's loss, parts and throughput are of all steps since the last. The open window is part of a
    checkpoint, so that a resumed run writes the lines the uninterrupted run would have written (its timings aside).
    peak: what all devices together could make of floating-point operations in a second, asked once; None: MFU is not told.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int,
        steps: int,
        unit: str,
        tracker: Tracker | NoTracker,
        resumed: TrainingState | None,
        peak: Callable[[], float] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"log_every={every} must be at least 1; it is steps between lines of metrics.jsonl")
        self._run, self._every, self._steps, self._unit, self._tracker = run, every, steps, unit, tracker
        self._log = MetricsLog(run.metrics_file)
        self._progress: Progress | None = None
        self._told_disk = False
        self._window: dict[str, Any] = _empty_window() | (resumed.facts["window"] if resumed else {})
        self._ask_peak, self._peak = peak, 0.0
        self._seconds: float = resumed.facts["seconds"] if resumed else 0.0
        self._ended = self._began = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {"window": self._window, "seconds": round(self._seconds, 3)}

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._ended = time.monotonic()
        if not trainer.is_global_zero:
            self._window["parts"] = {}  # a checkpoint keeps the first rank's
        else:
            self._log.rewind(pl_module.counters.step)
            self._peak = self._ask_peak() if self._ask_peak is not None else 0.0
            self._progress = Progress(steps=self._steps, done=pl_module.counters.step, unit=self._unit)

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        report = pl_module.report
        assert report is not None
        now = time.monotonic()
        window = self._window
        window["data_seconds"] += self._began - self._ended
        window["step_seconds"] += now - self._began
        self._seconds += now - self._ended
        self._ended = now
        self._count(report)
        if not report.taken:
            self._skipped(trainer, report)
        if self._progress is not None:
            amount = window["tokens"] if self._unit == "tokens" else window["samples"]
            spent = max(1e-9, window["step_seconds"] + window["data_seconds"])
            self._progress.update(report.step, loss=report.loss, rate=amount / spent, mfu=self._mfu(window["flops"] / spent))
        if report.step % self._every == 0 or report.step == self._steps:
            self._write(trainer, pl_module, report)
        pl_module.refuse_to_go_on()

    def _mfu(self, flops_per_second: float) -> float | None:
        return flops_per_second / self._peak if self._peak and flops_per_second else None

    def _count(self, report: Report) -> None:
        window = self._window
        if not report.taken:
            window["skipped"] += 1
            return
        window["steps"] += 1
        window["loss"] += report.loss
        window["grad_norm"] += report.grad_norm
        window["samples"] += report.samples
        window["tokens"] += report.tokens
        window["flops"] += report.flops
        for name, (total, count) in report.parts.items():
            before = window["parts"].get(name)
            total, count = total.double().cpu(), count.double().cpu()
            sums = [total.tolist(), count.tolist()]
            window["parts"][name] = sums if before is None else [_plus(before[0], sums[0]), _plus(before[1], sums[1])]

    def _skipped(self, trainer: Trainer, report: Report) -> None:
        ids = list(report.suspects)
        rank = trainer.global_rank
        loss, norm = str(report.loss), str(report.grad_norm)
        if ids:
            self._run.event("skipped", step=report.step, rank=rank, loss=loss, grad_norm=norm, sample_ids=ids)
        if self._progress is not None:
            self._progress.say(
                f"step {report.step} was skipped: loss {loss}, gradient norm {norm}; its samples are in {self._run.events_file}"
            )

    def _write(self, trainer: Trainer, module: TrainingModule, report: Report) -> None:
        window, self._window = self._window, _empty_window()
        parts = {name: _ratio(total, count) for name, (total, count) in _everyones(window["parts"], module).items()}
        if not trainer.is_global_zero:
            return
        steps = window["steps"]
        spent = window["data_seconds"] + window["step_seconds"]
        values = {
            "samples": module.counters.samples,
            "tokens": module.counters.tokens,
            "loss": window["loss"] / steps if steps else None,
            "grad_norm": window["grad_norm"] / steps if steps else None,
            "lr": report.lr,
            **parts,
            "skipped": window["skipped"],
            "seconds": round(self._seconds, 3),
            "step_seconds": round(spent / max(1, steps + window["skipped"]), 5),
            "data_share": round(window["data_seconds"] / max(1e-9, spent), 4),
            "tokens_per_second": round(window["tokens"] / max(1e-9, spent), 1),
            "clips_per_second": round(window["samples"] / max(1e-9, spent), 2),
        }
        if (mfu := self._mfu(window["flops"] / max(1e-9, spent))) is not None:
            values |= {"tflops_per_second": round(window["flops"] / spent / 1e12, 5), "mfu": round(mfu, 4)}
        if not self._log.write({"step": report.step, **values}) and not self._told_disk and self._progress is not None:
            self._told_disk = True
            self._progress.say(f"{self._log.path} cannot be written ({self._log.problem}); training goes on without it")
        self._tracker.log(report.step, _scalars(values))

    def stood_still(self) -> None:
        """The time until now belongs neither to a step nor to waiting for data: an evaluation took it."""
        self._ended = time.monotonic()

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)

    def close(self) -> None:
        """End the display, and the tracker within its patience."""
        if self._progress is not None:
            self._progress.close()
        self._tracker.close()


class Checkpoints(Callback):
    """Restores at the start; saves every `every` steps, at the last step, and when a signal asks, after which training stops.

    Training goes on while a thread writes a copy; only one is on its way at a time. A save that the disk refuses is told and recorded,
    and training goes on to the next one; the last one must succeed.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int,
        keep: int,
        keep_every: int,
        steps: int,
        seed: int,
        flag: StopFlag,
        journal: Journal,
        phases: Phases,
        resumed: TrainingState | None,
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"checkpoint.every={every} and checkpoint.keep={keep} must be at least 1")
        self._run, self._every, self._keep, self._keep_every = run, every, keep, keep_every
        self._steps, self._seed, self._flag, self._journal, self._resumed = steps, seed, flag, journal, resumed
        self._begun: int | None = resumed.step if resumed else None
        self._saving: checkpoint.Saving | None = None
        self._writer = Writer()
        self._phases = phases
        self._first = True
        self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._flag.install()

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Before anything trains: the averages begin at the weights, and are then filled like them.
        pl_module.begin()
        if self._resumed is not None:
            state.restore(pl_module, self._resumed, source=checkpoint.folder_of(self._run.checkpoints, self._resumed.step))

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._first:
            return
        self._first = False
        # Only now: starting a loader draws from the global state, more or less of it depending on the number of workers.
        if self._resumed is None or not state.restore_random(self._resumed, rank=trainer.global_rank):
            rng.seed(self._seed, rank=trainer.global_rank)
        self._resumed = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        report = pl_module.report
        assert report is not None
        last = report.step >= self._steps
        if report.stop:
            self._flag.received = ranks.highest(self._flag.received or 0, pl_module.device)
        with self._phases.during("checkpoint"):
            if report.stop or last:
                self._begin(pl_module)
                self._end(pl_module, wait=True, must=True)
            elif report.step % self._every == 0:
                self._begin(pl_module)
            else:
                self._end(pl_module, wait=False)
        if report.stop and not last:
            self.stopped = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._end(pl_module, wait=True)

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ranks.several():  # several cannot agree any more; what they have begun is swept away at the next start
            self._end(pl_module, wait=True)

    def _begin(self, module: TrainingModule) -> None:
        """Copy the state of this step, and let a thread write it."""
        step = module.counters.step
        if self._begun == step:
            return
        self._end(module, wait=True)
        captured = state.capture(module, self._journal.facts)
        self._saving = checkpoint.Saving(
            self._run.checkpoints, captured, rank=module.global_rank, ranks=module.trainer.world_size, copied=True
        )
        self._begun = step
        self._writer.start(self._saving.write)

    def _end(self, module: TrainingModule, *, wait: bool, must: bool = False) -> None:
        """Commit what was begun, once every rank has written its part; `wait` for that."""
        saving = self._saving
        if saving is None:
            return
        if wait:
            self._writer.join()
        outcome = ranks.highest(self._writer.outcome, module.device)
        if outcome == Writer.BUSY:
            return
        self._writer.join()
        self._saving = None
        if module.global_rank == 0 and outcome == Writer.DONE:
            self._writer.run(lambda: saving.commit(keep=self._keep, keep_every=self._keep_every))
        outcome = ranks.highest(self._writer.outcome, module.device)
        if outcome == Writer.DONE:
            return
        if module.global_rank == 0:
            saving.abandon()
        self._failed(saving.path, self._writer.error, must=must)

    def _failed(self, path: Path, error: Exception | None, *, must: bool) -> None:
        if isinstance(error, ValueError):
            raise error
        step = checkpoint.step_of(path)
        no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if no_room else str(error or "another rank could not write")
        if must:
            raise ValueError(
                f"{path.parent} could not take the checkpoint of step {step}: {reason}. Earlier ones are as they were; "
                f"make room and continue with resume={self._run.folder}"
            ) from error
        self._run.event("save failed", step=step, reason=reason)
        self._journal.say(
            f"the checkpoint of step {step} could not be written: {reason}. Training goes on; the next try is in {self._every} steps"
        )


class Writer:
    """One thread at a time, and what came of it."""

    DONE, BUSY, REFUSED = 0, 1, 2

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self.error: Exception | None = None

    def start(self, work: Callable[[], object]) -> None:
        self.error = None
        self._thread = Thread(target=self.run, args=(work,), name="checkpoint")
        self._thread.start()

    def run(self, work: Callable[[], object]) -> None:
        """Do it here."""
        try:
            work()
        except (OSError, ValueError) as error:
            self.error = error

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def outcome(self) -> int:
        if self._thread is not None and self._thread.is_alive():
            return self.BUSY
        return self.DONE if self.error is None else self.REFUSED


def _empty_window() -> dict[str, Any]:
    sums = ("loss", "grad_norm", "flops", "data_seconds", "step_seconds")
    return {"steps": 0, "skipped": 0, "samples": 0, "tokens": 0, **dict.fromkeys(sums, 0.0), "parts": {}}


def _plus(first: Any, second: Any) -> Any:
    return [a + b for a, b in zip(first, second, strict=True)] if isinstance(first, list) else first + second


def _ratio(total: Any, count: Any) -> Any:
    if isinstance(total, list):
        return [_ratio(a, b) for a, b in zip(total, count, strict=True)]
    return total / count if count else None


def _everyones(parts: Mapping[str, Any], module: TrainingModule) -> dict[str, Any]:
    """The window's sums over all ranks."""
    if not ranks.several():
        return dict(parts)
    import torch

    return {name: ranks.summed(torch.tensor(parts[name], dtype=torch.float64, device=module.device)).tolist() for name in sorted(parts)}


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw: lists become name/0, name/1, ..."""
    flat = {}
    for name, value in values.items():
        items = {f"{name}/{number}": item for number, item in enumerate(value)} if isinstance(value, list) else {name: value}
        flat |= {key: item for key, item in items.items() if item is not None}
    return flat
