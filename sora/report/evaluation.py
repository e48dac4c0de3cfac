"""The page that `sora evaluate` writes: figures with their intervals, curves over checkpoints, clips from worst to best, neighbours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sora.metrics.protocol import preset_lines
from sora.report import plots
from sora.report.page import Figure, Figures, Page, Part, Plot, Prose, Section, Table, Video, Videos, number, render
from sora.report.plots import Panel, Span
from sora.storage import read_json, write_text

SHOWN = 12  # clips from either end, and pairs of neighbours
# What is told in large type and drawn over checkpoints, where it was measured: title, note, what its floor is.
TOLD = {
    "loss": ("Held-out loss", "of the velocity; lower is better", ""),
    "adherence_all": ("Prompt adherence", "share of clips that show colour, shape and direction", ""),
    "frechet": ("Fréchet distance", "to the real clips; lower is better", "frechet_floor"),
    "frechet_over_floor": ("Fréchet over its floor", "1 is what two sets of real clips have", ""),
    "kvd": ("Kernel distance", "unbiased; 0 is the same distribution", ""),
    "permanence": ("Object permanence", "share of hidden things that come back the same", ""),
    "gravity_deviation": ("Off the gravity arc", "short sides; lower is better", ""),
    "remembered": ("Near copies", "share of clips nearer to training clips than 95 % of real ones", ""),
    "psnr": ("Reconstruction", "dB PSNR", ""),
}


def write_page(folder: Path) -> Path:
    """`report.html` beside the `scores.json` of a folder; its path.

    Other folders beside it are earlier or later checkpoints, told where their protocol is the same; RUN/evaluation.jsonl, two folders up,
    is what was measured while training.
    """
    scores = read_json(folder / "scores.json")
    lines = read_lines(folder.parent.parent / "evaluation.jsonl")
    sections = [
        Section("Figures", figure_parts(scores)),
        Section("Over checkpoints", curve_parts(history(folder, scores), lines)),
        Section("Held-out loss", loss_parts(scores)),
        Section("Clips from worst to best" if any(map(ranked, scores["rows"])) else "Clips", clip_parts(folder, scores)),
        Section("Nearest training clips", neighbour_parts(folder, scores)),
        Section("Every figure", [Table(["Figure", "Value"], [[name, float(value)] for name, value in scores["figures"].items()])]),
        Section("Protocol", protocol_parts(scores)),
    ]
    kinds = {"diffusion": "generated clips", "vae": "reconstructions", "videos": "videos"}
    lead = f"Scores of {scores['n']} {kinds.get(scores['kind'], 'clips')}; protocol {scores['protocol_sha256'][:12]}."
    page = Page(_title(scores), lead, [section for section in sections if section.parts])
    write_text(folder / "report.html", render(page))
    return folder / "report.html"


def history(folder: Path, scores: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """(step, figures) of every checkpoint that was scored by the same protocol, in order; of the same weights where that is told."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.parent.glob("*/scores.json")):
        other = read_json(path)
        step = step_of(other)
        same = other.get("protocol_sha256") == scores["protocol_sha256"] and _weights(other) == _weights(scores)
        if step is not None and (same or path.parent == folder):
            found[step] = dict(other["figures"])
    return sorted(found.items())


def step_of(scores: Mapping[str, Any]) -> int | None:
    """Of the checkpoint; None where what was scored has none."""
    step = scores.get("subject", {}).get("step", scores.get("protocol", {}).get("checkpoint", {}).get("step"))
    return int(step) if isinstance(step, int) else None


def figure_parts(scores: Mapping[str, Any]) -> list[Part]:
    """What matters in large type, then everything with an interval."""
    figures: Mapping[str, float] = scores["figures"]
    items = []
    for name, (title, note, floor) in TOLD.items():
        if not _finite(value := figures.get(name)):
            continue
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        told = [note]
        told += [f"95 % interval {number(low)} to {number(high)}"] if _finite(low) and _finite(high) else []
        told += [f"floor {number(figures[floor])}"] if _finite(figures.get(floor)) else []
        items.append(Figure(title, number(float(value)), "; ".join(told)))
    parts: list[Part] = [Figures(items)] if items else []
    for shares in (True, False):
        for group in _spans(figures, shares=shares):
            words = "Shares with their 95 % intervals" if shares else _told(group)
            parts.append(Plot(plots.intervals(group, across="share of clips" if shares else "", shares=shares), words))
    return parts


def _told(group: Mapping[str, Span]) -> str:
    """What a plot of one figure shows."""
    (name, span), *_ = group.items()
    floor = "" if math.isnan(span.floor) else "; the upright stroke is its floor, what two sets of real clips of these numbers score"
    return f"{name} with its 95 % interval{floor}"


def _spans(figures: Mapping[str, float], *, shares: bool) -> list[dict[str, Span]]:
    """Figures that have an interval: all shares in one plot, each other one by itself, since its unit is its own."""
    found = {}
    for name, value in figures.items():
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        if _finite(value) and _finite(low) and _finite(high) and "/" not in name:
            found[name] = Span(float(value), float(low), float(high), float(figures.get(f"{name}_floor", math.nan)))
    together = {name.removeprefix("adherence_"): span for name, span in found.items() if name.startswith("adherence")}
    if shares:
        return [together] if together else []
    others = {name: span for name, span in found.items() if not name.startswith("adherence") and not name.endswith("change")}
    return [{TOLD[name][0] if name in TOLD else name: span} for name, span in others.items()]


def curve_parts(scored: Sequence[tuple[int, Mapping[str, float]]], lines: Sequence[Mapping[str, Any]]) -> list[Part]:
    """What came of each checkpoint, and what was measured while training, in small plots over the steps."""
    parts: list[Part] = []
    if len(scored) > 1:
        drawn = panels_of(scored, TOLD)
        parts.append(Plot(plots.panels(drawn, across="step"), f"{len(scored)} checkpoints, scored by one protocol"))
    while_training = [(line["step"], line) for line in lines if line.get("weights", "ema") == "ema"]
    if len(while_training) > 1:
        parts.append(Plot(plots.panels(panels_of(while_training, TOLD), across="step"), "Measured while training, on fewer clips"))
        rows = [[line["step"], *_change(line)] for _, line in while_training if "loss_change" in line]
        if rows:
            head = ["Step", "Change of the held-out loss, %", "from", "to", "Probability of seeing 1 %", "Change seen in 80 % of cases, %"]
            parts += [Prose("From one evaluation to the next, clip by clip, with 95 % intervals."), Table(head, rows)]
    return parts


def panels_of(points: Sequence[tuple[int, Mapping[str, Any]]], wanted: Mapping[str, tuple[str, str, str]]) -> list[Panel]:
    """A panel for each wanted figure that at least two points have; with intervals, and the floor of the last as a dashed line."""
    found = []
    for name, (title, _, floor) in wanted.items():
        have = [(step, figures) for step, figures in points if _finite(figures.get(name))]
        if len(have) < 2:
            continue
        steps = [step for step, _ in have]
        sides = [(step, figures[f"{name}_low"], figures[f"{name}_high"]) for step, figures in have if _finite(figures.get(f"{name}_low"))]
        at, low, high = ([side[place] for side in sides] for place in range(3))
        band = {name: (at, low, high)} if len(sides) > 1 else {}
        level = have[-1][1].get(floor, 1.0 if name == "frechet_over_floor" else None)
        found.append(Panel(title, {name: (steps, [figures[name] for _, figures in have])}, band, level))
    return found


def loss_parts(scores: Mapping[str, Any]) -> list[Part]:
    """By noise level, and for every size and length of clips."""
    if not (found := scores.get("heldout")):
        return []
    levels, rows = found["by_level"], found["by_shape"]
    across = [float(level) for level in levels]
    parts: list[Part] = [
        Plot(
            plots.curves({"loss": (across, list(levels.values()))}, across="noise level (0 is data)", up="loss"),
            "Mean squared error of the velocity on held-out clips, at each noise level",
        )
    ]
    head = ["Size", "Frames", "Clips", "Loss", *(f"at {level}" for level in levels)]
    table = [
        [f"{row['width']}×{row['height']}", row["frames"], row["clips"], float(row["loss"]), *(float(value) for value in row["levels"])]
        for row in rows
    ]
    return [*parts, Table(head, table)] if table else parts


def standing(row: Mapping[str, Any]) -> float | None:
    """How well a clip did, higher is better: the share of what its prompt asks that it shows; else a similarity; else PSNR."""
    verdicts = [right for right in marks_of(row).values() if right is not None]
    if verdicts:
        return sum(verdicts) / len(verdicts)
    for name, value in row.items():
        if name.startswith("text_similarity"):
            return float(value)
    return float(row["psnr"]) if "psnr" in row else None


def ranked(row: Mapping[str, Any]) -> bool:
    """Whether anything says how well a clip did."""
    return standing(row) is not None


def marks_of(row: Mapping[str, Any]) -> dict[str, bool | None]:
    """What was asked of a clip, and whether it shows it."""
    found = {name: right for name, right in row.get("adherence", {}).items() if name != "all"}
    kept = row.get("physics", {}).get("permanence")
    return found if kept is None else {**found, "permanence": bool(kept)}


def clip_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """The clips that were kept, the worst ones first; of many only both ends; in their order where nothing ranks them."""
    kept = [row for row in scores["rows"] if "file" in row] if scores["kind"] == "vae" else list(scores["rows"])
    pairs = [(name, row, standing(row)) for name, row in zip(scores["clips"], kept, strict=False)]
    judged = sorted(((name, row, value) for name, row, value in pairs if value is not None), key=lambda item: item[2])
    if not judged:  # nothing says which are good
        first = [_clip(folder, name, row, _how(row)) for name, row, _ in pairs[: 2 * SHOWN]]
        return [Prose(f"The first {len(first)} of {scores['n']}; nothing was measured that ranks them."), Videos(first)] if first else []
    parts: list[Part] = []
    if len(judged) <= 2 * SHOWN:
        return [Videos([_clip(folder, name, row, _how(row)) for name, row, _ in judged])]
    for what, some in (("worst", judged[:SHOWN]), ("best", judged[-SHOWN:])):
        alike = sum(value == some[0][2] for _, _, value in judged)
        all_alike = some[0][2] == some[-1][2] and alike > SHOWN
        words = f"{SHOWN} of the {alike} that do {what}, which do equally well" if all_alike else f"The {SHOWN} that do {what}"
        words = f"{words}, of {len(judged)}."
        parts += [Prose(words), Videos([_clip(folder, name, row, _how(row)) for name, row, _ in some])]
    return parts


def _how(row: Mapping[str, Any]) -> str:
    arc = row.get("physics", {}).get("gravity_deviation")
    told = [f"{row['psnr']:.1f} dB"] if "psnr" in row else []
    return "; ".join([*told, *([f"{number(float(arc))} short sides off the arc"] if arc is not None else [])])


def _clip(folder: Path, name: str, row: Mapping[str, Any], note: str) -> Video:
    from sora.data.video import probe

    info = probe(folder / name)
    marks = marks_of(row)
    size = f"{row.get('width', info.width)}×{row.get('height', info.height)}, {row.get('frames', info.frames)} frames"
    caption = str(row.get("prompt") or row.get("key") or row.get("name") or Path(name).stem)
    return Video((folder / name).read_bytes(), info.width, info.height, caption, "; ".join(filter(None, [size, note])), marks)


def neighbour_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """Generated clips beside the training clips that they are nearest to, the nearest first."""
    found = scores.get("neighbours")
    if not found:
        return []
    told = (
        f"{100 * found['remembered']:.1f} % of the generated clips lie nearer to a training clip than all but 5 % of held-out clips do "
        f"(5 % is what to expect of new clips); z = {found['z']:.1f}, far below 0 for copies. Distances are of the features of "
        f"{found['extractor']}, over {found['training']} training clips; a held-out clip's is {number(found['usual'])} in the median."
    )
    clips: list[Video] = []
    for pair in found["pairs"][:SHOWN]:
        if pair["number"] >= len(scores["clips"]):  # it was not kept
            continue
        near, far = (
            {"prompt": text, **{key: row[key] for key in ("frames", "height", "width") if key in row}}
            for text, row in ((pair["prompt"], scores["rows"][pair["number"]]), (pair["caption"] or pair["key"], pair))
        )
        clips.append(_clip(folder, scores["clips"][pair["number"]], near, ""))
        clips.append(_clip(folder, pair["file"], far, f"training clip, at {number(pair['distance'])}"))
    return [Prose(told), *([Videos(clips, together=2)] if clips else [])]


def told_shorter(name: str, figures: Mapping[str, float]) -> bool:
    """Whether a figure with its extractor's name, `frechet/rand3d-v1@17f/low`, stands there by a short name as well."""
    first, *rest = name.split("/")
    return bool(rest) and "_".join([first, *rest[1:]]) in figures


def protocol_parts(scores: Mapping[str, Any]) -> list[Part]:
    """The preset, where one was chosen; all that the scores depend on, and what was scored."""
    preset = scores.get("preset") or {}
    parts: list[Part] = [Prose(line) for line in preset_lines(preset)]
    for name in ("subject", "protocol"):
        if scores.get(name):
            parts += [Table([name.capitalize(), ""], [list(pair) for pair in _flat(scores[name])])]
    return parts


def _flat(node: Any, place: str = "") -> list[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        return [pair for key, value in node.items() for pair in _flat(value, f"{place}.{key}" if place else str(key))]
    text = node if isinstance(node, str) else json.dumps(node)
    return [(place, text if len(text) <= 120 else f"{text[:117]}…")]


def _weights(scores: Mapping[str, Any]) -> Any:
    return scores.get("subject", {}).get("ema")


def _change(line: Mapping[str, Any]) -> list[float]:
    names = ("loss_change", "loss_change_low", "loss_change_high", "loss_power", "loss_detectable")
    return [float(line[name]) * (1 if name == "loss_power" else 100) for name in names]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of RUN/evaluation.jsonl, a torn last one left out; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _title(scores: Mapping[str, Any]) -> str:
    step = step_of(scores)
    return "sora evaluate" + (f": step {number(step)}" if step is not None else "")
