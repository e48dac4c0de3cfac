"""One run of the study: trained, measured and written down, in a process forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sora import evaluate, train
from sora.assembly.data import diffusion_plan
from sora.assembly.load import load_diffusion
from sora.config.compose import compose
from sora.quickstart import value
from sora.system.files import read_json, write_json

HELD_OUT = "heldout"  # the split of the built-in world that no run is trained on
TOKENS = 28_000  # of held-out clips that are measured: each of the quickstart's about twice
SEED = 1234  # of the held-out packs, levels and noise: the same for all runs


def make(run: Path, words: Sequence[str], *, score: Sequence[str] | None) -> None:
    """Train a run by its command line, or go on with it, and write figures.json beside its checkpoints; nothing if it is there.

    score: what `sora evaluate` is told beside the run, for prompts that the samples should follow; None: no samples.
    """
    told = [*words, f"output={value(run)}", "resume=auto"]
    asked = {"words": told, "score": None if score is None else list(score)}
    done = run / "figures.json"
    if done.exists() and {key: read_json(done).get(key) for key in asked} == asked:
        return
    if train.main(compose("train", told)):
        raise KeyboardInterrupt  # it was asked to stop, and saved
    figures = held_out(run)
    if score is not None:
        evaluate.main(compose("evaluate", [f"checkpoint={value(run)}", f"output={value(run / 'scores')}", *score]))
        scores = read_json(run / "scores/scores.json")["figures"]
        figures |= {name: number for name, number in scores.items() if name.startswith("adherence")}
    write_json(done, {**asked, "figures": figures})


@torch.no_grad()
def held_out(run: Path) -> dict[str, float]:
    """The mean loss of a token of held-out clips with their captions, at levels and noise that are the same whatever was trained.

    The weights are the last ones, at a rate of learning that has gone to zero: averages are for longer runs.
    """
    loaded = load_diffusion(run, ema=False)
    changes: Any = {"seed": SEED, "data": {"split": HELD_OUT, "drop": 0.0}}
    planned = diffusion_plan(OmegaConf.merge(loaded.config, changes))  # pyright: ignore[reportArgumentType]
    batches = planned.data.batches(planned.plan)
    total = count = 0.0
    for step in range(-(-TOKENS // planned.plan.budget)):
        for batch in batches[step]:
            noised = loaded.objective.noise(batch, seed=SEED)
            losses = loaded.objective.losses(loaded.dit, batch, noised, loaded.text(batch.text))
            total, count = total + float(losses.double().sum()), count + float(noised.count)
    return {"loss": total / count}


def in_child(work: Callable[[], None], *, threads: int) -> None:
    """Do it in a forked process, which need not import torch again, with so many threads; Ctrl-C and SIGTERM let it save.

    Beware: whoever calls this has worked with one thread, since threads do not live on in children and OpenMP would wait for them.

    Raises:
        ValueError: it failed; what it says stands on the terminal.
    """
    child = multiprocessing.get_context("fork").Process(target=_threaded, args=(work, threads))
    child.start()
    try:
        child.join()
    except BaseException:
        if child.is_alive():
            child.terminate()
        child.join()
        raise
    if child.exitcode:
        raise ValueError(f"a run of the study ended with exit code {child.exitcode}; see above, and run the same command to go on")


def _threaded(work: Callable[[], None], threads: int) -> None:
    torch.set_num_threads(threads)
    work()
