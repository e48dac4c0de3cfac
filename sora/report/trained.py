"""The state of runs in training, from the files in their folders, at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

RUN = "run.json"
MEASURED = ("loss", "adherence_all", "frechet", "motion_frechet", "kvd")  # metrics of training, in the order of a table's columns
WEIGHTS = "ema"  # the weights that the metrics are of
LAST = 0.1  # the last share of steps, over which the training loss is averaged
SAME = ("evaluation", "data.split", "data.folders", "text", "vae")  # keys of the configuration that metrics of training depend on


@dataclass(frozen=True)
class Trained:
    """A run as its folder shows it. info: run.json. config: config.yaml. lines, measured, spent, events: the lines of metrics.jsonl,
    evaluation.jsonl, goodput.jsonl and events.jsonl. whole: steps of checkpoints."""

    folder: Path
    info: Mapping[str, Any]
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    measured: Sequence[Mapping[str, Any]]
    spent: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    whole: Sequence[int]

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return int(self.config.get("steps", 0))

    @property
    def step(self) -> int:
        """The last step in the log or with a checkpoint."""
        return max([0, *self.whole, *(int(line["step"]) for line in self.lines[-1:])])

    @property
    def finished(self) -> bool:
        return self.step >= self.steps > 0

    @property
    def diverged(self) -> bool:
        """Whether the log has losses of the last steps, and none is finite."""
        return bool(self._late) and not any(number(line.get("loss")) for line in self._late)

    @property
    def _late(self) -> list[Mapping[str, Any]]:
        """The lines of the last steps, see `LAST`."""
        return [line for line in self.lines if line["step"] > (1 - LAST) * self.step]

    def figures(self) -> dict[str, float]:
        """The figures of a table: "training loss", the mean over the last steps; the latest metrics of the averaged weights, with
        intervals; and the speed."""
        found: dict[str, float] = {}
        losses = [line["loss"] for line in self._late if number(line.get("loss"))]
        if losses:
            found["training loss"] = fmean(losses)
        last = next((line for line in reversed(self.measured) if line.get("weights", WEIGHTS) == WEIGHTS), {})
        for name in MEASURED:
            shown = "held-out loss" if name == "loss" else name
            found |= {f"{shown}{end}": last[f"{name}{end}"] for end in ("", "_low", "_high") if number(last.get(f"{name}{end}"))}
        unit = "tokens_per_second" if self.info.get("kind") == "diffusion" else "clips_per_second"
        if rates := [line[unit] for line in self.lines if number(line.get(unit))]:
            found[unit.replace("_per_second", "/s")] = median(rates)
        return found


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_run(folder: Path) -> bool:
    return (folder / RUN).exists()


def trained(folder: Path) -> Trained:
    """A run, from its folder, while another process may write to it. Raises ValueError if it is no run or its configuration is damaged."""
    from sora.runs import checkpoint
    from sora.runs.jsonl import EVENT, STEPPED, read
    from sora.runs.run import open_run
    from sora.training.logging.goodput import FILE, LINE

    run = open_run(folder)
    return Trained(
        folder=folder,
        info=run.info,
        config=run.config,
        lines=read(run.metrics_file, STEPPED),
        measured=read(folder / "evaluation.jsonl", STEPPED),
        spent=read(folder / FILE, LINE),
        events=read(run.events_file, EVENT),
        whole=[step for path in checkpoint.listed(run.checkpoints) if (step := checkpoint.step_of(path)) is not None],
    )


def unlike(runs: Sequence[Trained]) -> list[str]:
    """The keys of SAME in which configurations differ, so that metrics of training are of different clips."""
    return [key for key in SAME if any(_at(run.config, key) != _at(runs[0].config, key) for run in runs[1:])]


def _at(tree: Any, place: str) -> Any:
    for part in place.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
