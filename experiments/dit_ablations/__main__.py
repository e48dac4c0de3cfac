"""Run the study, or go on with it: every arm at equal compute with every seed, on the quickstart's data, then a table and a plot.

    python -m experiments.dit_ablations                                 # all of it: hours on a CPU
    python -m experiments.dit_ablations --quickstart outputs/quickstart # with the data and the VAE of a quickstart that has run
    python -m experiments.dit_ablations --steps 300 --seeds 0 --no-samples      # a first look
    python -m experiments.dit_ablations --scale toy --steps 8 --seeds 0 1 --output outputs/try
    python -m experiments.dit_ablations --only dual                     # arms whose name has the word, and the base

Finished runs are not made again and interrupted ones go on. Stop it at any time: seeds are outermost.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.dit_ablations import runs, study
from experiments.dit_ablations.plot import plot
from sora.config.compose import compose
from sora.launch.stages import commit, run_stages
from sora.quickstart import real_videos, value
from sora.quickstart import stages as quickstart_stages
from sora.system.files import write_json, write_text

DATA = ("world", "real", "vae", "latents")  # stages of the quickstart that the arms share


def main() -> None:
    given = asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a time limit: the run that is being made may save
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, seeds = Path(given.output), list(given.seeds)
    config = compose("quickstart", [f"scale={given.scale}", f"output={value(folder)}"]).config
    source = Path(given.quickstart) if given.quickstart else made(config, folder)
    world, vae = source / "data/world", source / "vae"
    found = [arm for arm in study.arms() if arm.name == "base" or any(word in arm.name for word in given.only or [""])]
    experiment = [str(item) for item in config.scale.dit]
    words = {arm.place: [*experiment, *arm.words, *given.also] for arm in found}
    places = [f"data.folders=[{value(world)}]", f"vae={value(vae)}"]
    told: Any = compose("train", [*words["base"], *places]).config
    base = told.steps if given.steps is None else given.steps
    steps = study.equal_steps(words, places, steps=base)
    print("\n".join(f"{name}: {number} steps" for name, number in steps.items()), flush=True)
    score = [f"data={value(world)}", "metrics=[adherence]", "keep=0", *(str(item) for item in config.scale.scores)]
    try:
        for number, (seed, arm) in enumerate([(seed, arm) for seed in seeds for arm in found], 1):
            begun, run = time.monotonic(), folder / "runs" / arm.place / str(seed)
            print(f"\n[{number}/{len(seeds) * len(found)}] {arm.name}, seed {seed}", flush=True)
            whole = [*words[arm.place], *places, f"seed={seed}", f"steps={steps[arm.place]}"]
            runs.in_child(partial(runs.make, run, whole, score=score if given.samples else None), threads=threads)
            print(f"  {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        report(folder, found, seeds=seeds, steps=steps, told={"steps": base, "also": given.also})


def made(config: Any, folder: Path) -> Path:
    """The quickstart's data, VAE and latents, made as it makes them, in the study's folder."""
    stages = [stage for stage in quickstart_stages(config, folder, folder / "prompts.jsonl", real_videos()) if stage.name in DATA]
    run_stages(stages, folder)
    return folder


def report(folder: Path, found: list[study.Arm], *, seeds: list[int], steps: dict[str, int], told: dict[str, Any]) -> None:
    """What there is so far: results.json, results.md and results.svg."""
    rows = study.results(folder / "runs", found, seeds=seeds, steps=steps)
    by_name = {arm.name: arm for arm in found}
    questions = list(dict.fromkeys(question for arm in found for question in arm.questions if arm.words))

    def name_of(row: dict[str, Any], question: str) -> str:
        return study.title(by_name[row["arm"]], question)

    write_json(folder / "results.json", {"rows": rows, "seeds": seeds, **told, "commit": commit()})
    write_text(folder / "results.md", study.table(rows, questions, name_of))
    write_text(folder / "results.svg", plot(rows, questions, name_of))
    print(f"{folder / 'results.md'}\n{folder / 'results.svg'}")


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.dit_ablations", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", default="outputs/dit_ablations", help="folder of the study")
    parser.add_argument("--quickstart", default=None, help="folder of a quickstart that has run; without, its data are made in --output")
    parser.add_argument("--scale", default="full", help="of conf/scale: what data, VAE and experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="of the base; the experiment's own unless given")
    parser.add_argument("--only", nargs="*", default=None, help="arms whose name has one of these words, and the base")
    parser.add_argument("--also", nargs="*", default=[], help="KEY=VALUE that every arm gets")
    parser.add_argument("--no-samples", dest="samples", action="store_false", help="held-out losses only: short runs follow no prompts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
