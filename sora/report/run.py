"""The page of a run, finished or still training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sora.report import plots
from sora.report.clips import clip
from sora.report.evaluation import TOLD, panels_of
from sora.report.page import Commands, Figure, Figures, Folded, Links, Part, Plot, Prose, Section, Table, Video, VideoGrid, number
from sora.report.plots import Panel
from sora.system.files import read_json
from sora.system.terminal import counted

Lines = Sequence[Mapping[str, Any]]
# The values of metrics.jsonl that are drawn over steps, with titles.
DRAWN = {
    "lr": "Learning rate",
    "tokens_per_second": "Tokens a second",
    "clips_per_second": "Clips a second",
    "mfu": "Model's share of the peak (MFU)",
    "grad_norm": "Norm of the gradient",
    "attributes": "Loss of the attributes",
    "contrast": "Loss of clips against captions",
    "short": "Loss of short captions",
    "dense": "Loss of dense captions",
    "data_share": "Share of the time that waits for data",
}
MOST_POINTS, MOST_EVENTS = 600, 20
PHASES = ("step", "data", "checkpoint", "evaluation", "start", "end", "wasted", "down")


def headline(*, step: int, steps: int, lines: Lines, measured: Lines, goodput: float | None) -> Figures:
    """The progress of a run, in large type."""
    last = lines[-1] if lines else {}
    items = [Figure("Steps", number(step), f"of {number(steps)}")]
    if _real(last.get("loss")):
        items.append(Figure("Loss of training", number(float(last["loss"])), f"at step {number(int(last['step']))}"))
    for name in ("loss", "adherence_all", "frechet", "motion_frechet", "kvd"):
        told = next((line for line in reversed(measured) if _real(line.get(name))), None)
        if told is not None:
            title, note, _ = TOLD[name]
            items.append(Figure(title, number(float(told[name])), f"{note}; at step {number(int(told['step']))}"))
    if _real(last.get("samples")):
        items.append(Figure("Clips seen", number(int(last["samples"]))))
    if paces := [line["step_seconds"] for line in lines if _real(line.get("step_seconds"))]:
        left = (steps - step) * median(paces)
        items.append(Figure("Time left", duration(left), "at the usual pace of its steps") if step < steps else _whole(lines))
    if goodput is not None:
        items.append(Figure("Goodput", f"{100 * goodput:.0f} %", "of the time went into steps that count"))
    return Figures(items)


def _whole(lines: Lines) -> Figure:
    return Figure("Time in training", duration(float(lines[-1].get("seconds") or 0.0)), "of all processes, between their steps")


def curves(lines: Lines) -> list[Part]:
    """The loss over steps, and small plots of the other values in metrics.jsonl."""
    some = lines[:: max(1, len(lines) // MOST_POINTS)]
    points = [(line["step"], line["loss"]) for line in some if _real(line.get("loss"))]
    drawn = []
    if len(points) > 1:
        steps, losses = [step for step, _ in points], [loss for _, loss in points]
        steep = min(losses) > 0 and max(losses) > 20 * min(losses)
        drawn.append(plots.curves({"loss": (steps, losses)}, across="step", up="loss", logarithmic=steep, smooth=7))
    panels = []
    for name, title in DRAWN.items():
        have = [(line["step"], line[name]) for line in some if _real(line.get(name))]
        if len(have) > 1:
            panels.append(Panel(title, {name: ([step for step, _ in have], [value for _, value in have])}, {}))
    drawn += plots.panels(panels, across="step", marker="")
    words = "Loss of training, the thick line its running mean, and what else was measured at every line of metrics.jsonl"
    return [Plot(drawn, words)] if drawn else []


def measured_parts(measured: Lines) -> list[Part]:
    """The metrics of the averaged weights during training."""
    points = [(line["step"], line) for line in measured if line.get("weights", "ema") == "ema"]
    drawn = panels_of(points, TOLD)
    words = "Measured while training, with 95 % intervals; dashed: the floor, what sets that do not differ score"
    return [Plot(plots.panels(drawn, across="step"), words)] if drawn else []


def sample_parts(folders: Sequence[tuple[int, Path]], *, most: int) -> list[Part]:
    """Samples of the same prompts at several steps, a row for each step, newest first. folders: (step, folder of its samples)."""
    parts: list[Part] = []
    chosen = sorted(folders, reverse=True)
    if len(chosen) > most:  # newest, first, and an even spread between
        chosen = [chosen[round(place * (len(chosen) - 1) / (most - 1))] for place in range(most)] if most > 1 else chosen[:1]
    for step, folder in chosen:
        if clips := samples_of(folder, most=most):
            parts += [Prose(f"Step {number(step)}"), VideoGrid(clips)]
    return parts


def samples_of(folder: Path, *, most: int) -> list[Video]:
    """The first samples of a folder with the facts of their sidecars. Files that cannot be shown, such as one that is being written, are
    skipped."""
    clips = []
    for path in sorted(folder.glob("*.mp4")):
        try:
            about = read_json(path.with_suffix(".json"))
            size = (int(about["width"]), int(about["height"]))
            length = "an image" if about["frames"] == 1 else f"{about['frames']} frames, {about['frames'] / about['fps']:.1f}\u00a0s"
            clips.append(clip(path, str(about["prompt"]), size=size, note=f"{size[0]}×{size[1]}, {length}"))
        except (ValueError, KeyError, TypeError, OSError):
            continue
        if len(clips) == most:
            break
    return clips


def time_parts(spent: Lines, totals: Mapping[str, Any] | None) -> list[Part]:
    """The use of all processes' time. totals: the result of `sora.training.logging.goodput.totals` for the lines of goodput.jsonl."""
    if totals is None:
        return []
    seconds = {name: totals["seconds"].get(name, 0.0) for name in PHASES}
    useful = {"steps that count": totals["useful"], **{name: value for name, value in seconds.items() if name != "step" and value >= 0.05}}
    told = f"Of {duration(totals['wall'])}, {100 * totals['goodput']:.1f} % went into steps that count"
    rows: list[list[str | int | float]] = []
    for place, line in enumerate(spent, 1):
        rows.append([place, int(line["first"]), int(line["last"]), *(round(float(line[name]), 1) for name in PHASES)])
    return [Plot(plots.bars(useful, across="seconds"), told), *_processes(rows)]


def _processes(rows: list[list[str | int | float]]) -> list[Part]:
    return [Folded(f"Each of {len(rows)} processes", [Table(["Process", "From step", "To step", *PHASES], rows)])] if len(rows) > 1 else []


def data_parts(folders: Sequence[tuple[str, Mapping[str, Any] | None]], depends: Mapping[str, str], left_out: int) -> list[Part]:
    """The training data: each dataset with the content of its dataset.json (None if it cannot be read from here), hashes, and the number of
    clips that were replaced by others."""
    rows: list[list[str | int | float]] = []
    for name, described in folders:
        totals = (described or {}).get("totals", {})
        counted = [f"{number(totals[key])} {key}" for key in ("clips", "frames") if isinstance(totals.get(key), int)]
        told = "not to be read from here" if described is None else ", ".join(counted) or "a dataset"
        rows.append([name, told])
    parts: list[Part] = [Table(["Dataset", "Holds"], rows)] if rows else []
    if left_out:
        clips = f"{number(left_out)} {'clip' if left_out == 1 else 'clips'}"
        parts.append(Prose(f"{clips} could not be read or had losses that are not finite; others stood in for them."))
    if depends:
        hashes = [[name, str(value)] for name, value in depends.items()]
        parts.append(Folded("Hashes of what it depends on", [Table(["What", "Hash"], hashes)]))
    return parts


def event_parts(events: Lines) -> list[Part]:
    """Problems and manual actions, newest first."""
    if not events:
        return []
    rows = [
        [str(line.get("event", "")), json.dumps({key: value for key, value in line.items() if key != "event"})[:200]] for line in events
    ]
    more = f", the newest {MOST_EVENTS}" if len(rows) > MOST_EVENTS else ""
    return [Folded(f"{counted(len(rows), 'event')}{more}", [Table(["Event", "What"], rows[::-1][:MOST_EVENTS])])]


def sections(parts: Mapping[str, Sequence[Part]], *, links: Sequence[tuple[str, str]], commands: Sequence[str]) -> list[Section]:
    """The sections that are not empty, then links and commands."""
    lead_on: list[Part] = [*([Links(links)] if links else []), Commands(commands)]
    return [Section(title, each) for title, each in {**parts, "From here": lead_on}.items() if each]


def duration(seconds: float) -> str:
    """A duration for people: 1.5 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f}\u00a0s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}\u00a0min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours < 48 else f"{hours / 24:.1f}\u00a0days"


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
