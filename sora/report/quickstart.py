"""The report of a quickstart: the results of its stages, from one folder, as a page and as figures."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from sora.metrics.scored import told_shorter
from sora.report import plots
from sora.report.clips import clip
from sora.report.evaluation import OF_PAIRS, TOLD, clip_of, panels_of, read_lines
from sora.report.page import Commands, Figure, Figures, Folded, Links, Page, Part, Plot, Prose, Section, Table, VideoGrid, number, render
from sora.system.files import read_json, write_json, write_text

PACKAGES = ("sora", "torch", "lightning", "hydra-core", "av", "numpy", "transformers", "einops", "safetensors")
WANTED = {
    "world_vae_psnr": ("World clips through the VAE", "dB PSNR, held out"),
    "real_vae_psnr": ("Real clips through the VAE", "dB PSNR, held out"),
    "adherence_all": ("All that the prompt asks for, steadily", "share of generated clips"),
    "adherence_all_v1": ("Colour, shape and direction", "share of generated clips that show all three on the whole"),
    "adherence_colour": ("Colour", "share of generated clips"),
    "adherence_shape": ("Shape", "share of generated clips"),
    "adherence_direction": ("Direction", "share of generated clips"),
    "adherence_steady": ("Steady", "share of generated clips whose object stays what it is, on its way"),
    "frechet_over_floor": ("Fréchet distance over its floor", "1 is what sets that do not differ have"),
    "motion_frechet_over_floor": ("Motion: Fréchet distance over its floor", "of how clips change along time, which the other hardly sees"),
}
WATCHED = ("loss", "adherence_all", "frechet", "motion_frechet", "kvd")  # metrics of training
SHOWN = 24  # clips in a section; the others are in the folder


class StageDone(Protocol):
    """A finished stage, such as `sora.launch.stages.FinishedStage`."""

    @property
    def stage(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def commit(self) -> str: ...


def write_report(folder: Path, done: Sequence[StageDone], *, notes: Mapping[str, str]) -> dict[str, float]:
    """Write `report.html` and `scores.json` in `folder`; return the figures. notes: texts below the samples of some prompts."""
    vae, dit = read_json(folder / "vae_scores/scores.json"), read_json(folder / "scores/scores.json")
    found = {**vae["figures"], **dit["figures"]}
    figures = {name: float(found[name]) for name in WANTED if name in found and math.isfinite(float(found[name]))}
    figures["seconds_total"] = round(sum(stage.seconds for stage in done), 1)
    where = environment()
    write_json(
        folder / "scores.json",
        {
            "figures": figures,
            "missing": [name for name in WANTED if name not in figures],
            "stages": [
                {"stage": stage.stage, "seconds": stage.seconds, "command": stage.command, "commit": stage.commit} for stage in done
            ],
            "vae": {name: vae[name] for name in ("figures", "n", "protocol") if name in vae},
            "diffusion": {name: dit[name] for name in ("figures", "n", "protocol") if name in dit},
            "environment": where,
        },
    )
    machine = Folded("What this ran on", [Table(["", ""], [[name, value] for name, value in where.items()])])
    sections = [
        Section("Figures", figure_parts(figures, dit["figures"])),
        Section("Samples", sample_parts(folder / "samples", notes)),
        Section("Held-out prompts", scored_parts(folder / "scores", dit)),
        Section("Reconstructions", reconstruction_parts(folder / "vae_scores", vae)),
        Section("Over training", watched_parts(folder / "dit")),
        Section("Training", curve_parts(folder)),
        Section("Stages", stage_parts(done)),
        Section("Data", data_parts(folder)),
        Section("More", [Links(links(folder)), Folded("Every figure", [scores_table(vae["figures"], dit["figures"])]), machine]),
    ]
    lead = (
        "A text-to-video model made from nothing on this machine: a video VAE trained on procedurally drawn and on real clips, a diffusion "
        "transformer trained on packed spacetime patches of its latents, and clips that it made from text."
    )
    write_text(folder / "report.html", render(Page("sora quickstart", lead, [section for section in sections if section.parts])))
    return figures


def links(folder: Path) -> list[tuple[str, str]]:
    """The pages that stages wrote, by their paths below the folder."""
    pages = {
        "dit/report.html": "The run of the model: curves, samples over steps, where its time went",
        "vae/report.html": "The run of the VAE",
        "scores/report.html": "The model's scores, clip by clip",
        "vae_scores/report.html": "The VAE's scores, clip by clip",
    }
    return [(title, path) for path, title in pages.items() if (folder / path).is_file()]


def figure_parts(figures: Mapping[str, float], dit: Mapping[str, float]) -> list[Part]:
    """The main figures in large type, with intervals if they were measured."""
    items = []
    for name, (title, note) in WANTED.items():
        low, high = dit.get(f"{name}_low"), dit.get(f"{name}_high")
        interval = f" (95 % interval {low:.2f} to {high:.2f})" if low is not None and high is not None else ""
        value = figures.get(name)
        items.append(Figure(title, "not measured" if value is None else f"{value:.2f}", note + interval))
    items.append(Figure("Time of all stages", _duration(figures["seconds_total"]), "without installation"))
    return [Figures(items)]


def sample_parts(folder: Path, notes: Mapping[str, str]) -> list[Part]:
    """The samples with their prompts and sizes."""
    clips = []
    for path in sorted(folder.glob("*.mp4"))[:SHOWN]:
        about = read_json(path.with_suffix(".json"))
        shape = _shape(about["width"], about["height"], about["frames"], about["fps"])
        note = "; ".join(filter(None, [shape, notes.get(about["prompt"], "")]))
        clips.append(clip(path, about["prompt"], size=(about["width"], about["height"]), note=note))
    return [Prose("Clips of several sizes and durations, denoised together in packs; each loops."), VideoGrid(clips)]


def scored_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """Generated clips of prompts with combinations that training never showed, with the verdicts of the checker."""
    rows = list(zip(scores["clips"], scores["rows"], strict=False))[:SHOWN]
    clips = [clip_of(folder, name, row, scores["kind"]) for name, row in rows]
    words = (
        f"The first {len(clips)} of {scores['n']} clips that the scores are over, not chosen. Their prompts name combinations of colour, "
        "shape and direction that were held out of training; the marks are what a checker measured in the pixels alone."
    )
    return [Prose(words), VideoGrid(clips)]


def reconstruction_parts(folder: Path, scores: Mapping[str, Any]) -> list[Part]:
    """Held-out clips beside their reconstructions, by dataset."""
    rows = [row for row in scores["rows"] if "file" in row]
    parts: list[Part] = [Prose(f"{OF_PAIRS} None of these was trained on.")]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        some = [pair for pair in zip(scores["clips"], rows, strict=True) if pair[1]["dataset"] == dataset][: SHOWN // 2]
        parts.append(VideoGrid([clip_of(folder, name, row, scores["kind"]) for name, row in some]))
    return parts


def curve_parts(folder: Path) -> list[Part]:
    """The losses of both trainings over steps."""
    parts: list[Part] = []
    for name, title in (("vae", "VAE: loss"), ("dit", "Text-to-video model: loss of the velocity")):
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        points = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)]
        if not points:
            continue
        steps, losses = [step for step, _ in points], [loss for _, loss in points]
        last = rows[-1]
        words = f"{title}, {number(last['step'])} steps, {number(last['samples'])} clips"
        parts.append(Plot(plots.curves({"loss": (steps, losses)}, across="step", up="loss", logarithmic=name == "vae", smooth=7), words))
    return parts


def watched_parts(folder: Path) -> list[Part]:
    """One plot of the metrics of the averaged weights during training."""
    lines = [line for line in read_lines(folder / "evaluation.jsonl") if line["weights"] == "ema"]
    drawn = panels_of([(line["step"], line) for line in lines], {name: TOLD[name] for name in WATCHED})
    if not drawn:
        return []
    words = (
        f"Held-out combinations, measured {len(lines)} times while training: loss of the velocity with its 95 % interval, share of clips "
        "that show what their prompt says, Fréchet distance (dashed: its floor, what sets that do not differ have), kernel distance "
        "(0 is the same)"
    )
    return [Plot(plots.panels(drawn, across="step"), words)]


def stage_parts(done: Sequence[StageDone]) -> list[Part]:
    """The duration and the command of every stage."""
    commits = {stage.commit for stage in done}
    rows = [[stage.title, round(stage.seconds, 1), *([stage.commit] if len(commits) > 1 else [])] for stage in done]
    head = ["Stage", "Seconds", *(["Commit"] if len(commits) > 1 else [])]
    bars = plots.bars({stage.title: stage.seconds for stage in done}, across="seconds")
    return [Plot(bars, "Where the time went"), Table(head, rows), Commands([stage.command for stage in done])]


def data_parts(folder: Path) -> list[Part]:
    """The number of clips by kind, and their part of the built-in world."""
    parts: list[Part] = []
    for name, title in (("world", "The built-in world"), ("real", "Real clips")):
        described = read_json(folder / "data" / name / "dataset.json")
        source = described.get("about", {}).get("config", {}).get("source", {})
        flat = {**{key: value for key, value in source.items() if not isinstance(value, dict)}, **source.get("world", {})}
        totals = {key: value for key, value in described.get("totals", {}).items() if isinstance(value, str | int | float)}
        rows = [[key, _text(value)] for key, value in {**totals, **flat}.items() if key != "_target_"]
        parts.append(Table([title, ""], rows))
    return parts


def scores_table(vae: Mapping[str, float], dit: Mapping[str, float]) -> Table:
    """Every number of the evaluations, once."""
    every = {**vae, **dit}
    return Table(["Figure", "Value"], [[name, float(value)] for name, value in every.items() if not told_shorter(name, every)])


def environment() -> dict[str, str]:
    """The versions, processor and cores of this machine; no host or user names."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    found["cores"] = str(os.cpu_count())
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _shape(width: int, height: int, frames: int, fps: float) -> str:
    return f"{width}×{height}, " + ("an image" if frames == 1 else f"{frames} frames, {frames / fps:.1f}\u00a0s")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f}\u00a0min" if seconds >= 60 else f"{round(seconds)}\u00a0s"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) if not isinstance(item, list) else "×".join(map(str, item)) for item in value)
    return str(value)
