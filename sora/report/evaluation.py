"""The page of `sora evaluate`: figures with intervals, curves over checkpoints, clips from worst to best, nearest training clips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from sora.gate.forms import Fields, count, fitting, text
from sora.gate.texts import read_lines as read_json_lines
from sora.metrics.protocol import preset_lines
from sora.metrics.scored import read_scores, told_shorter
from sora.report import plots
from sora.report.clips import clip
from sora.report.page import Figure, Figures, Folded, Page, Part, Plot, Prose, Section, Table, Video, VideoGrid, number, render
from sora.report.plots import Panel, ValueInterval
from sora.system.files import write_text

KINDS = {"diffusion": "generated clips", "vae": "reconstructions", "videos": "videos", "captioner": "clips with captions"}
LINE = Fields({"step": count}, may={"weights": text})  # of evaluation.jsonl
SHOWN = 12  # clips of the best and of the worst, and pairs of neighbours
# Figures that are shown in large type and drawn over checkpoints: title, note, meaning of the floor.
TOLD = {
    "loss": ("Held-out loss", "of the velocity; lower is better", ""),
    "adherence_all": ("Prompt adherence", "share of clips that show all that their prompt asks for, and stay steady", ""),
    "adherence_all_v1": ("Prompt adherence, as before", "colour, shape and direction on the whole, whatever happens in between", ""),
    "frechet": ("Fréchet distance", "to the real clips; lower is better", "frechet_floor"),
    "frechet_over_floor": ("Fréchet over its floor", "1 is what sets that do not differ have", ""),
    "kvd": ("Kernel distance", "unbiased; 0 is the same distribution", ""),
    "motion_frechet": ("Fréchet distance of motion", "of how clips change along time; lower is better", "motion_frechet_floor"),
    "motion_frechet_over_floor": ("Motion over its floor", "1 is what two sets of real clips have", ""),
    "fvmd_lite": ("FVMD-like distance", "of histograms of flow; lower is better", "fvmd_lite_floor"),
    "permanence": ("Object permanence", "share of hidden things that come back the same", ""),
    "gravity_deviation": ("Off the gravity arc", "short sides; lower is better", ""),
    "dense_all": ("Dense captions", "share that is right in every attribute", ""),
    "short_all": ("Short captions", "share that is right in every attribute", ""),
    "answers_all": ("Answers", "share of clips whose every attribute is answered right", ""),
    "remembered": ("Near copies", "share of clips nearer to training clips than 95 % of real ones", ""),
}
OF_VAES = {"psnr": ("PSNR", "dB; higher is better"), "ssim": ("SSIM", "1 is the same"), "frechet": ("Fréchet distance", "to the originals")}

_DRAWN = 40  # figures with an interval that are drawn; a stranger's scores.json may have more, which stand in its table


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a folder's `scores.json`, to `report.html` in it or to `output`; return the path.

    Folders beside it with scores of the same protocol are shown as other checkpoints. RUN/evaluation.jsonl, two folders up, has the metrics
    of training.
    """
    scores = read_scores(folder / "scores.json")
    if missing := [key for key in ("figures", "rows", "n", "kind", "protocol", "protocol_sha256") if key not in scores]:
        raise ValueError(f"{folder / 'scores.json'} holds no scores of sora evaluate: it has no {missing[0]}")
    lines = read_lines(folder.parent.parent / "evaluation.jsonl")
    every = [[name, float(value)] for name, value in scores["figures"].items() if not told_shorter(name, scores["figures"])]
    sections = [
        Section("Figures", figure_parts(scores)),
        Section("Clips from worst to best" if any(map(ranked, scores["rows"])) else "Clips", clip_parts(folder, scores)),
        Section("Over checkpoints", curve_parts(history(folder, scores), lines)),
        Section("Held-out loss", loss_parts(scores)),
        Section("What was taken for what", confusion_parts(scores)),
        Section("Nearest training clips", neighbour_parts(folder, scores)),
        Section("Every figure", [Folded(f"{len(every)} figures", [Table(["Figure", "Value"], every)])] if every else []),
        Section("Protocol", protocol_parts(scores)),
    ]
    lead = f"{scores['n']} {KINDS.get(scores['kind'], 'clips')}"
    lead += f" of {place_of(scores)}" if place_of(scores) else ""
    lead += f"; protocol {scores['protocol_sha256'][:12]}."
    page = Page(_title(scores), lead, [section for section in sections if section.parts])
    place = folder / "report.html" if output is None else output
    write_text(place, render(page))
    return place


def place_of(scores: Mapping[str, Any]) -> str:
    """The run or folder that was scored, as the command named it; empty if the scores do not record it."""
    subject = scores.get("subject") or {}
    return str(subject.get("run") or subject.get("place") or "")


def history(folder: Path, scores: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """(step, figures) of every checkpoint scored by the same protocol, in order; of the same weights, where the scores name them."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.parent.glob("*/scores.json")):
        other = read_scores(path)
        step = step_of(other)
        same = other.get("protocol_sha256") == scores["protocol_sha256"] and _weights(other) == _weights(scores)
        if step is not None and (same or path.parent == folder):
            found[step] = dict(other["figures"])
    return sorted(found.items())


def step_of(scores: Mapping[str, Any]) -> int | None:
    """The step of the scored checkpoint; None if there is none."""
    earlier = scores["protocol"].get("checkpoint")  # its place in older versions
    step = (scores.get("subject") or {}).get("step", earlier.get("step") if isinstance(earlier, dict) else None)
    return step if type(step) is int else None


def figure_parts(scores: Mapping[str, Any]) -> list[Part]:
    """The main figures in large type, then a plot of all figures with an interval."""
    figures: Mapping[str, float] = scores["figures"]
    items = [
        Figure(f"{title} of {name.removesuffix(f'_vae_{word}')}", number(float(value)), note)
        for name, value in figures.items()
        for word, (title, note) in OF_VAES.items()
        if name.endswith(f"_vae_{word}") and _finite(value)
    ]
    for name, (title, note, floor) in TOLD.items():
        if not _finite(value := figures.get(name)):
            continue
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        told = [note]
        told += [f"95 % interval {number(low)} to {number(high)}"] if _finite(low) and _finite(high) else []
        told += [f"floor {number(figures[floor])}"] if _finite(figures.get(floor)) else []
        told += [f"p {number(figures[f'{name}_p'])}, the chance of this if nothing differed"] if _finite(figures.get(f"{name}_p")) else []
        items.append(Figure(title, number(float(value)), "; ".join(told)))
    parts: list[Part] = [Figures(items)] if items else []
    parts += [Prose(line[:1].upper() + line[1:] + ".") for line in scores.get("cautions") or ()]
    groups = [(shares, group) for shares in (True, False) for group in _spans(figures, shares=shares)]
    drawn = [plots.intervals(group, across="share of clips" if shares else "", shares=shares) for shares, group in groups]
    words = ["Shares with their 95 % intervals" if shares else _told(group) for shares, group in groups]
    return [*parts, *([Plot(drawn, ". ".join(words))] if drawn else [])]


def _told(group: Mapping[str, ValueInterval]) -> str:
    """The description of a plot with one figure."""
    (name, span), *_ = group.items()
    floor = "" if math.isnan(span.floor) else "; the upright stroke is its floor, what sets of these numbers score that do not differ"
    return f"{name} with its 95 % interval{floor}"


def _spans(figures: Mapping[str, float], *, shares: bool) -> list[dict[str, ValueInterval]]:
    """The figures with an interval: shares in one plot, every other figure in its own, because units differ."""
    found = {}
    for name, value in figures.items():
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        if _finite(value) and _finite(low) and _finite(high) and "/" not in name:
            found[name] = ValueInterval(float(value), float(low), float(high), float(figures.get(f"{name}_floor", math.nan)))
    together = {name.removeprefix("adherence_"): span for name, span in found.items() if name.startswith("adherence")}
    if shares:
        return [dict(list(together.items())[:_DRAWN])] if together else []
    others = {name: span for name, span in found.items() if not name.startswith("adherence") and not name.endswith("change")}
    return [{TOLD[name][0] if name in TOLD else name: span} for name, span in list(others.items())[:_DRAWN]]


def curve_parts(scored: Sequence[tuple[int, Mapping[str, float]]], lines: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Small plots over steps: the figures of each checkpoint, and the metrics of training."""
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
    """A panel for each wanted figure with at least two points; it shows intervals, and the last floor as a dashed line."""
    found = []
    for name, (title, _, floor) in wanted.items():
        have = [(step, figures) for step, figures in points if _finite(figures.get(name))]
        if len(have) < 2:
            continue
        steps = [step for step, _ in have]
        sides = [(step, figures[f"{name}_low"], figures[f"{name}_high"]) for step, figures in have if _finite(figures.get(f"{name}_low"))]
        at, low, high = ([side[place] for side in sides] for place in range(3))
        band = {name: (at, low, high)} if len(sides) > 1 else {}
        level = have[-1][1].get(floor, 1.0 if name.endswith("over_floor") else None)
        found.append(Panel(title, {name: (steps, [figures[name] for _, figures in have])}, band, level))
    return found


def loss_parts(scores: Mapping[str, Any]) -> list[Part]:
    """The held-out loss by noise level, and by size and length of clips."""
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
    """How good a clip is, higher is better: the share of its prompt's facts that it shows, else a similarity, else PSNR."""
    verdicts = [right for right in marks_of(row).values() if right is not None]
    if verdicts:
        return sum(verdicts) / len(verdicts)
    for name, value in row.items():
        if name.startswith("text_similarity"):
            return float(value)
    return float(row["psnr"]) if "psnr" in row else None


def ranked(row: Mapping[str, Any]) -> bool:
    """Whether any score ranks the clip."""
    return standing(row) is not None


def marks_of(row: Mapping[str, Any]) -> dict[str, bool | None]:
    """The facts that a prompt asks for, and whether the clip shows each."""
    found = {name: right for name, right in row.get("adherence", {}).items() if name != "all"}
    kept = row.get("physics", {}).get("permanence")
    return found if kept is None else {**found, "permanence": bool(kept)}


def clip_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """The stored clips, worst first, each beside a real one of its size if there is one. Of many, only the worst and the best are shown.
    Without a score that ranks them, they are shown in order."""
    kept = [row for row in scores["rows"] if "file" in row] if scores["kind"] == "vae" else list(scores["rows"])
    pairs = [(name, row, standing(row)) for name, row in zip(scores["clips"], kept, strict=False)]
    judged = sorted(((name, row, value) for name, row, value in pairs if value is not None), key=lambda item: item[2])
    beside = Beside(folder, scores.get("real") or ())

    def shown(some: Sequence[tuple[str, Mapping[str, Any], Any]]) -> VideoGrid:
        return beside.videos([(clip_of(folder, name, row, scores["kind"]), row) for name, row, _ in some])

    if not judged:  # no score ranks them
        first = pairs[: 2 * SHOWN]
        words = f"The first {len(first)} of {scores['n']}; nothing was measured that ranks them. {beside.words}".strip()
        return [Prose(words), shown(first)] if first else []
    told: list[Part] = [Prose(words) for words in (OF_PAIRS if scores["kind"] == "vae" else beside.words,) if words]
    if len(judged) <= 2 * SHOWN:
        return [*told, shown(judged)]
    for what, some in (("worst", judged[:SHOWN]), ("best", judged[-SHOWN:])):
        alike = sum(value == some[0][2] for _, _, value in judged)
        all_alike = some[0][2] == some[-1][2] and alike > SHOWN
        words = f"{SHOWN} of the {alike} that do {what}, which do equally well" if all_alike else f"The {SHOWN} that do {what}"
        told += [Prose(f"{words}, of {len(judged)}."), shown(some)]
    return told


OF_PAIRS = "The original is on the left, what the VAE made of it on the right."


class Beside:
    """Pairs clips with real clips of the same length and size. real: rows with file, frames, height, width and a name or a prompt."""

    def __init__(self, folder: Path, real: Sequence[Mapping[str, Any]]) -> None:
        self._folder, self._real, self._asked = folder, real, 0

    @property
    def words(self) -> str:
        return "On the right of each a real clip of its length and size; not of its prompt." if self._real else ""

    def videos(self, clips: Sequence[tuple[Video, Mapping[str, Any]]]) -> VideoGrid:
        """The clips, each beside a real one; alone if there are none."""
        if not self._real:
            return VideoGrid([video for video, _ in clips])
        return VideoGrid([each for video, row in clips for each in (video, self._for(row))], together=2)

    def _for(self, row: Mapping[str, Any]) -> Video:
        shape = [row.get(key) for key in ("frames", "height", "width")]
        alike = [real for real in self._real if [real.get(key) for key in ("frames", "height", "width")] == shape] or self._real
        self._asked += 1
        real = alike[self._asked % len(alike)]
        return clip(self._folder / real["file"], "real", size=(real["width"], real["height"]), note=str(real.get("prompt") or real["name"]))


def _how(row: Mapping[str, Any]) -> str:
    arc = row.get("physics", {}).get("gravity_deviation")
    told = [f"{row['psnr']:.1f} dB"] if "psnr" in row else []
    return "; ".join([*told, *([f"{number(float(arc))} short sides off the arc"] if arc is not None else [])])


def clip_of(folder: Path, name: str, row: Mapping[str, Any], kind: str, note: str = "") -> Video:
    """A clip with its scores. The file of a reconstruction shows two clips side by side; its row has the size of one."""
    sized = "width" in row and "height" in row
    size = (row["width"] * (2 if kind == "vae" else 1), row["height"]) if sized else None
    caption = str(row.get("prompt") or row.get("key") or row.get("name") or Path(name).stem)
    made = clip(folder / name, caption, size=size)
    shape = f"{row['width']}×{row['height']}" if sized else f"{made.width}×{made.height}"
    rate = f", {row['frames'] / row['fps']:.1f}\u00a0s" if row.get("fps") and row.get("frames", 1) > 1 else ""
    length = "an image" if row.get("frames") == 1 else f"{row['frames']} frames{rate}" if "frames" in row else ""
    told = "; ".join(filter(None, [row.get("dataset", ""), f"{shape}, {length}".rstrip(", "), _how(row), note]))
    return replace(made, note=told, marks=marks_of(row))


def confusion_parts(scores: Mapping[str, Any]) -> list[Part]:
    """For each attribute a picture and a table: of the clips that show a value, how many were said to show which."""
    parts: list[Part] = []
    for name, table in list((scores.get("confusions") or {}).items())[:_DRAWN]:
        shown = sorted({*table, *(said for row in table.values() for said in row)})[:_DRAWN]
        counts = [[table.get(truth, {}).get(said, 0) for said in shown] for truth in shown if truth in table]
        truths = [truth for truth in shown if truth in table]
        drawn = plots.counts(counts, down=truths, along=shown, across="said", up=name)
        rows = [[truth, *row] for truth, row in zip(truths, counts, strict=True)]
        parts += [
            Plot([drawn], f"{name}: rows are what a clip shows, columns what its captions say"),
            Folded("As numbers", [Table(["", *shown], rows)]),
        ]
    return parts


def neighbour_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """Generated clips beside their nearest training clips, the nearest pairs first."""
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
        if pair["number"] >= len(scores["clips"]):  # the clip was not stored
            continue
        near, far = (
            {"prompt": said, **{key: row[key] for key in ("frames", "height", "width") if key in row}}
            for said, row in ((pair["prompt"], scores["rows"][pair["number"]]), (pair["caption"] or pair["key"], pair))
        )
        clips.append(clip_of(folder, scores["clips"][pair["number"]], near, "diffusion"))
        clips.append(clip_of(folder, pair["file"], far, "diffusion", f"training clip, at {number(pair['distance'])}"))
    return [Prose(told), *([VideoGrid(clips, together=2)] if clips else [])]


def protocol_parts(scores: Mapping[str, Any]) -> list[Part]:
    """The preset, if one was chosen, the protocol, and what was scored."""
    preset = scores.get("preset") or {}
    parts: list[Part] = [Prose(line) for line in preset_lines(preset)]
    titles = {"subject": "What was scored", "protocol": "All that the scores depend on beside it"}
    tables = {name: Table(["Field", "Value"], [list(pair) for pair in _flat(scores[name])]) for name in titles if scores.get(name)}
    return [*parts, *(Folded(titles[name], [table]) for name, table in tables.items())]


def _flat(node: Any, place: str = "") -> list[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        return [pair for key, value in node.items() for pair in _flat(value, f"{place}.{key}" if place else str(key))]
    told = node if isinstance(node, str) else json.dumps(node)
    return [(place, told if len(told) <= 120 else f"{told[:117]}…")]


def _weights(scores: Mapping[str, Any]) -> Any:
    return (scores.get("subject") or {}).get("ema")


def _change(line: Mapping[str, Any]) -> list[float]:
    names = ("loss_change", "loss_change_low", "loss_change_high", "loss_power", "loss_detectable")
    return [float(line[name]) * (1 if name == "loss_power" else 100) for name in names]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of RUN/evaluation.jsonl without a torn last one; empty if there is no such file."""
    if not path.is_file():
        return []
    lines = read_json_lines(path, within=path.parent)
    return [fitting(line, LINE, f"{path}, its entry {place},") for place, line in enumerate(lines, 1)]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _title(scores: Mapping[str, Any]) -> str:
    step, name = step_of(scores), Path(place_of(scores)).name
    return (f"Scores of {name}" if name else "sora evaluate") + (f", step {number(step)}" if step is not None else "")
