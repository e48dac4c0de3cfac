"""The record of a run: metrics.jsonl, events.jsonl and the display. Lightning calls this after every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from sora.runs.checkpoint import TrainingState
from sora.runs.jsonl import MetricsLog
from sora.runs.run import Run
from sora.system import distributed as ranks
from sora.training.guard import Suspects
from sora.training.logging.goodput import Phases
from sora.training.logging.progress import Progress
from sora.training.logging.rank_timing import Gauges
from sora.training.logging.tracker import NoTracker, Tracker
from sora.training.module import Report, TrainingModule
from sora.training.optim import grad_norms as gradients


class Journal(Callback):
    """Writes metrics.jsonl and events.jsonl, and shows progress.

    every: steps between lines; a line has loss, parts and throughput over all steps since the last one. The open window is stored in
    checkpoints, so that a resumed run writes the same lines as an uninterrupted one, except for timings. phases: of this process; time for
    saving and evaluating does not count as waiting for data. peak: returns the peak FLOP/s of all devices; called once, and again if steps
    exceed it; None logs no MFU. goodput: returns the run's goodput so far, for every line. suspects: gets the samples whose loss was not
    finite.
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
        phases: Phases,
        suspects: Suspects | None = None,
        peak: Callable[[], float] | None = None,
        goodput: Callable[[], float] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"log_every={every} must be at least 1; it is steps between lines of metrics.jsonl")
        self._run, self._every, self._steps, self._unit, self._tracker = run, every, steps, unit, tracker
        self._log = MetricsLog(run.metrics_file)
        self._progress: Progress | None = None
        self._told_disk = False
        self._device: Any = None  # of the process group; known when training starts
        self._window: dict[str, Any] = _empty_window() | (_of_facts(resumed.facts["window"]) if resumed else {})
        self._ask_peak, self._peak, self._goodput, self._also = peak, 0.0, goodput, ""
        self._phases, self._gauges, self._gradients = phases, Gauges(run.folder), {}
        self.suspects = suspects or Suspects(lambda step, ids, reason: None)
        self._seconds: float = resumed.facts["seconds"] if resumed else 0.0
        self._ended = self._began = self._free = self._aside = self._waited = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """The content of a checkpoint. The open window is summed over ranks, so every rank must call this."""
        window = {**self._window, "parts": _finite(_everyones(self._window["parts"], self._device))}
        return {"window": window, "seconds": round(self._seconds, 3), "suspects": self.suspects.facts}

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._device = pl_module.device
        self._gauges.attach(pl_module.task, pl_module.device)
        self._ended = self._free = time.monotonic()
        self._aside = self._besides()
        if not trainer.is_global_zero:
            self._window["parts"] = {name: _nothing(sums) for name, sums in self._window["parts"].items()}  # the first rank has their sums
        else:
            self._log.rewind(pl_module.counters.step)
            self._peak = self._ask_peak() if self._ask_peak is not None else 0.0
            self._progress = Progress(steps=self._steps, done=pl_module.counters.step, unit=self._unit)

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._began = time.monotonic()
        self._waited = max(0.0, self._began - self._free - (self._besides() - self._aside))
        pl_module.on_gradients = self._measure if self._writes(pl_module.counters.step + 1) else None
        self._gauges.begin()

    def _besides(self) -> float:
        """Seconds so far of saving and evaluating between steps."""
        seconds = self._phases.seconds()
        return seconds["checkpoint"] + seconds["evaluation"]

    def _writes(self, step: int) -> bool:
        return step % self._every == 0 or step == self._steps

    def _measure(self, trained: Mapping[str, nn.Parameter], each: Tensor) -> None:
        self._gradients = {part: norm if math.isfinite(norm) else None for part, norm in gradients.norms(trained, each).items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        report = pl_module.report
        assert report is not None
        now = time.monotonic()
        window = self._window
        self._gauges.end(data=self._waited, prepare=pl_module.preparing)
        window["data_seconds"] += self._waited
        window["step_seconds"] += now - self._began
        self._seconds += now - self._ended
        self._ended = now
        self._count(report)
        if not trainer.is_global_zero:
            pass
        elif not report.taken:
            self._skipped(report)
        else:
            self.suspects.learned()
        if self._progress is not None:
            amount = window["tokens"] if self._unit == "tokens" else window["samples"]
            spent = max(1e-9, window["step_seconds"] + window["data_seconds"])
            mfu = self._mfu(window["flops"] / spent)
            self._progress.update(report.step, loss=report.loss, rate=amount / spent, mfu=mfu, also=self._also)
        if self._writes(report.step):
            self._write(trainer, pl_module, report)
        self._free, self._aside = time.monotonic(), self._besides()  # after writing, during which ranks wait for one another

    def _mfu(self, flops_per_second: float) -> float | None:
        """Model FLOPs utilisation. A peak that was measured on a busy machine is measured again when steps exceed it."""
        if not self._peak or not flops_per_second:
            return None
        if flops_per_second > self._peak and self._ask_peak is not None:
            before, self._peak = self._peak, max(self._ask_peak(), flops_per_second)
            was, now = f"{before / 1e12:.4g}", f"{self._peak / 1e12:.4g}"
            self.say(f"steps surpass the peak of {was} TFLOP/s, measured on a busy machine: it is {now} from here on")
        return flops_per_second / self._peak

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
            window["parts"][name] = [total, count] if before is None else [_plus(before[0], total), _plus(before[1], count)]

    def _skipped(self, report: Report) -> None:
        """Record a skipped step, on the first rank, in one line."""
        loss, norm = str(report.loss), str(report.grad_norm)
        self._run.event("skipped", step=report.step, reason=report.reason, loss=loss, grad_norm=norm, sample_ids=list(report.suspects))
        if report.traced:
            self.suspects.left_out(report.step, report.suspects)
        why = f"{report.reason}: loss {loss}, gradient norm {norm}"
        self.say(f"step {report.step} was skipped, {why}; its samples are in {self._run.events_file}")

    def _write(self, trainer: Trainer, module: TrainingModule, report: Report) -> None:
        window, self._window = self._window, _empty_window()
        parts = {name: _ratio(total, count) for name, (total, count) in _everyones(window["parts"], module.device).items()}
        machine = self._gauges.told()
        if not trainer.is_global_zero:
            return
        good = "" if self._goodput is None else f"goodput {self._goodput():.0%}"
        self._also = "  ".join(part for part in (good, self._gauges.slowest) if part)
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
            values |= {"peak_tflops_per_second": round(self._peak / 1e12, 5)}
        values |= {"gradients": self._gradients, "machine": machine}
        if not self._log.write({"step": report.step, **values}) and not self._told_disk and self._progress is not None:
            self._told_disk = True
            self._progress.say(f"{self._log.path} cannot be written ({self._log.problem}); training goes on without it")
        self._tracker.log(report.step, _scalars(values))

    def media(self, step: int, name: str, path: Path, caption: str) -> None:
        """Send the tracker a picture or video of `step` from the run folder.

        Raises:
            ValueError: the file is not in the run folder, which is the record; a tracker only has a copy.
        """
        if not path.is_file() or not path.resolve().is_relative_to(self._run.folder.resolve()):
            raise ValueError(f"{path} is no file in {self._run.folder}; write it there first, the tracker gets a copy")
        self._tracker.media(step, name, path, caption)

    def stood_still(self) -> None:
        """Restart the clocks of steps and of waiting for data, because an evaluation took the time until now."""
        self._ended = self._free = time.monotonic()
        self._aside = self._besides()

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)

    def close(self) -> None:
        """End the display, and the tracker within its patience."""
        self._gauges.detach()
        if self._progress is not None:
            self._progress.close()
            if summary := self._gauges.summary():
                print(summary)
        self._tracker.close()


def _empty_window() -> dict[str, Any]:
    sums = ("loss", "grad_norm", "flops", "data_seconds", "step_seconds")
    return {"steps": 0, "skipped": 0, "samples": 0, "tokens": 0, **dict.fromkeys(sums, 0.0), "parts": {}}


def _finite(sums: Any) -> Any:
    """Sums for JSON: null for one that is not finite, as a part of a loss that is not finite may be."""
    if isinstance(sums, Mapping):
        return {name: _finite(inner) for name, inner in sums.items()}
    if isinstance(sums, list | tuple):
        return [_finite(inner) for inner in sums]
    return sums if math.isfinite(sums) else None


def _of_facts(window: Mapping[str, Any]) -> dict[str, Any]:
    """The window from its form in a checkpoint."""

    def back(sums: Any) -> Any:
        return [back(each) for each in sums] if isinstance(sums, list) else math.nan if sums is None else sums

    return {**window, "parts": {name: back(pair) for name, pair in window["parts"].items()}}


def _plus(first: Any, second: Any) -> Any:
    return [a + b for a, b in zip(first, second, strict=True)] if isinstance(first, list) else first + second


def _ratio(total: Any, count: Any) -> Any:
    if isinstance(total, list):
        return [_ratio(a, b) for a, b in zip(total, count, strict=True)]
    return total / count if count else None


def _nothing(sums: Any) -> Any:
    return [_nothing(each) for each in sums] if isinstance(sums, list) else 0.0


def _everyones(parts: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The window's sums over all ranks."""
    if not ranks.several():
        return dict(parts)
    import torch

    return {name: ranks.summed(torch.tensor(parts[name], dtype=torch.float64, device=device)).tolist() for name in sorted(parts)}


def _scalars(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values as a tracker can draw them: items inside another value become name/0, name/part, ..."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = {str(place): item for place, item in enumerate(value)} if isinstance(value, list) else value
        name = f"{above}{key}"
        flat |= _scalars(inner, f"{name}/") if isinstance(inner, Mapping) else {name: value} if value is not None else {}
    return flat
