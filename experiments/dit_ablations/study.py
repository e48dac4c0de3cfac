"""The study's arms, how long each is trained, and what came of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sora.assembly.data import diffusion_plan
from sora.assembly.network import flops_of
from sora.config.compose import Composed, compose
from sora.data.plan.clips import ClipLimits
from sora.system.files import read_json
from sora.tokens import Grid

HERE = Path(__file__).resolve().parent
WORDS = 8  # tokens of a caption; the world's short ones have 5 to 12


@dataclass(frozen=True)
class Arm:
    """words: of the command line. place: the folder of its runs. questions: which it is an answer to."""

    name: str
    words: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def place(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


def arms(file: Path = HERE / "arms.yaml") -> list[Arm]:
    """Every arm once, and the network as it is first; it is the base of all questions."""
    told: Any = OmegaConf.to_container(OmegaConf.load(file))
    base = Arm("base", (), tuple(told))
    found = [Arm(name, tuple(words), (question,)) for question, each in told.items() for name, words in each.items() if words]
    return [base, *found]


def title(arm: Arm, question: str, file: Path = HERE / "arms.yaml") -> str:
    """The name of an arm as an answer to a question: the base has one for each."""
    told: Any = OmegaConf.to_container(OmegaConf.load(file))
    return next(iter(told[question])) if arm.name == "base" else arm.name


def equal_steps(words: Mapping[str, Sequence[str]], places: Sequence[str], *, steps: int) -> dict[str, int]:
    """Steps of each arm that cost what `steps` of the arm "base" do, to the nearest; words: whole command lines without folders.

    Every step holds as many tokens, whichever arm; what a token costs is counted over all clips of the data.
    """
    composed = {name: compose("train", [*each, *places]) for name, each in words.items()}
    planned = diffusion_plan(composed["base"].config)
    clips = planned.data.clips
    rows, counts = np.unique(clips.measured(np.arange(clips.starts[-1]), ClipLimits()).grids, axis=0, return_counts=True)
    grids = [(Grid(*(int(size) for size in row)), int(count)) for row, count in zip(rows, counts, strict=True)]
    channels = planned.patchifier.channels(latent_channels(planned.vae))
    costs = {name: cost(each, grids, patch_channels=channels, text_width=planned.encoder.width) for name, each in composed.items()}
    return {name: max(1, round(steps * costs["base"] / costs[name])) for name in costs}


def cost(composed: Composed, grids: Sequence[tuple[Grid, int]], *, patch_channels: int, text_width: int) -> float:
    """Operations of one pass over all clips; grids: with how many clips have each."""
    flops = flops_of(composed.config.dit, {"patch_channels": patch_channels, "text_width": text_width})
    return float(sum(count * flops.clip(grid, WORDS) for grid, count in grids))


def latent_channels(vae: Path) -> int:
    from sora.vae import artefact

    return artefact.load(vae).latent_channels


def results(runs: Path, found: Sequence[Arm], *, seeds: Sequence[int], steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each arm: its figures by seed, those that are there."""
    rows = []
    for arm in found:
        files = {seed: runs / arm.place / str(seed) / "figures.json" for seed in seeds}
        figures = {seed: read_json(file)["figures"] for seed, file in files.items() if file.exists()}
        names = sorted(set.intersection(*(set(each) for each in figures.values()))) if figures else []
        row = {"arm": arm.name, "words": list(arm.words), "questions": list(arm.questions), "steps": steps[arm.place]}
        rows.append(row | {"seeds": list(figures), **{name: [each[name] for each in figures.values()] for name in names}})
    return rows


def against_base(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By arm, its held-out loss less the base's of the same seed: what both share by the seed cancels."""
    base = dict(zip(rows[0]["seeds"], rows[0].get("loss", []), strict=False))
    return {
        row["arm"]: [loss - base[seed] for seed, loss in zip(row["seeds"], row.get("loss", []), strict=False) if seed in base]
        for row in rows[1:]
    }


def table(rows: Sequence[Mapping[str, Any]], questions: Sequence[str], name_of: Any) -> str:
    """Markdown: a table for each question, mean ± standard deviation over the seeds. rows: of all arms, the base first."""
    parts, less = [], against_base(rows)
    for question in questions:
        lines = [f"## {question}\n", "| arm | steps | held-out loss | less the base's | adherence | seeds |", "|---|---|---|---|---|---|"]
        for row in rows:
            if question in row["questions"]:
                told = (spread(row.get("loss", [])), spread(less.get(row["arm"], [])), spread(row.get("adherence_all", [])))
                lines.append(f"| {name_of(row, question)} | {row['steps']} | {' | '.join(told)} | {len(row['seeds'])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
