"""The study's arms, the stages of its runs, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sora.configs.compose import Composed, compose
from sora.data.planning.clips import Limits
from sora.jobs import diffusion_plan
from sora.network import flops_of
from sora.quickstart import value
from sora.stages import Stage
from sora.storage import read_json
from sora.tokens import Grid
from sora.training.metrics import read

HERE = Path(__file__).resolve().parent
WORDS = 8  # tokens of a caption; the world's short ones have 5 to 12
LAST = 0.1  # share of a run over which its last loss is the mean


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
    rows, counts = np.unique(clips.measured(np.arange(clips.starts[-1]), Limits()).grids, axis=0, return_counts=True)
    grids = [(Grid(*(int(size) for size in row)), int(count)) for row, count in zip(rows, counts, strict=True)]
    channels = planned.patchifier.channels(latent_channels(planned.vae))
    costs = {name: cost(each, grids, patch_channels=channels, text_width=planned.encoder.width) for name, each in composed.items()}
    return {name: max(1, round(steps * costs["base"] / costs[name])) for name in costs}


def cost(composed: Composed, grids: Sequence[tuple[Grid, int]], *, patch_channels: int, text_width: int) -> float:
    """Operations of one pass over all clips; grids: with how many clips have each."""
    flops = flops_of(composed.config.dit, patch_channels=patch_channels, text_width=text_width)
    return float(sum(count * flops.clip(grid, WORDS) for grid, count in grids))


def latent_channels(vae: Path) -> int:
    from sora.vae import artefact

    return artefact.load(vae).latent_channels


def stages(
    runs: Path, words: Mapping[str, Sequence[str]], places: Sequence[str], *, steps: Mapping[str, int], seeds: Sequence[int], score: Any
) -> list[Stage]:
    """Train and score every arm with every seed, seeds outermost: a study that is stopped has compared all arms with some seeds."""
    found = []
    for seed in seeds:
        for name, each in words.items():
            folder = runs / name / str(seed)
            told = (*each, *places, f"seed={seed}", f"steps={steps[name]}", f"output={value(folder)}", "resume=auto")
            label = f"{name} {seed}".replace(" ", "-")
            found.append(Stage(f"train-{label}", f"Train {name}, seed {seed}", "train", told, folder, (), goes_on=True))
            scored = (f"checkpoint={value(folder)}", f"output={value(folder / 'scores')}", *score)
            found.append(Stage(f"score-{label}", f"Score {name}, seed {seed}", "evaluate", scored, folder / "scores", (f"train-{label}",)))
    return found


def last_loss(run: Path) -> float:
    """The mean over the last tenth of a run."""
    rows = [row for row in read(run / "metrics.jsonl") if row["loss"] is not None]
    final = [row["loss"] for row in rows if row["step"] > (1 - LAST) * rows[-1]["step"]]
    return mean(final)


def results(runs: Path, found: Sequence[Arm], *, seeds: Sequence[int], steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each arm: its losses and figures by seed, those that are there."""
    rows = []
    for arm in found:
        done = [runs / arm.place / str(seed) for seed in seeds if (runs / arm.place / str(seed) / "scores/scores.json").exists()]
        figures = [read_json(folder / "scores/scores.json")["figures"] for folder in done]
        names = sorted(set.intersection(*(set(each) for each in figures))) if figures else []
        rows.append(
            {
                "arm": arm.name,
                "words": list(arm.words),
                "questions": list(arm.questions),
                "steps": steps[arm.place],
                "loss": [last_loss(folder) for folder in done],
                **{name: [each[name] for each in figures] for name in names if name.startswith("adherence")},
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], questions: Sequence[str], name_of: Any) -> str:
    """Markdown: a table for each question, mean ± standard deviation over the seeds."""
    parts = []
    for question in questions:
        lines = [f"## {question}\n", "| arm | steps | loss of the last tenth | adherence | seeds |", "|---|---|---|---|---|"]
        for row in rows:
            if question in row["questions"]:
                told = " | ".join((spread(row["loss"]), spread(row.get("adherence_all", []))))
                lines.append(f"| {name_of(row, question)} | {row['steps']} | {told} | {len(row['loss'])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
