"""What a run's loop adds to its steps, and how much of its draws anybody waits for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sora.assembly.training import JOBS
from sora.config.build import build
from sora.cost.tracing import attach
from sora.system.processes import Parent
from sora.training.module import TrainingModule
from tests.gpu.measuring import in_turn
from tests.gpu.record import Place


def shares(place: Place, folder: Path) -> dict[str, float]:
    """loop_share and draws_share of a run.

    loop_share: of a step's time without its wait for data, what is left when the same packs are prepared and stepped on in a loop with
    nothing around it. draws_share: of the time of that loop, what is left when packs, which workers have drawn noise and levels for, were
    moved before; 0 where that is hidden behind the device's work.
    """
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "step_seconds" in row][len(rows) // 4 :]
    whole = sum(row["step_seconds"] * (1 - row["data_share"]) for row in rows) / len(rows)
    alone, drawn = bare(place, folder)
    return {"loop_share": 1 - alone / whole, "draws_share": 1 - drawn / alone}


def bare(place: Place, folder: Path) -> tuple[float, float]:
    """Seconds of a step of the run in `folder`, on packs of its own plan that are loaded already: prepared in the loop, and before it."""
    config = OmegaConf.load(folder / "config.yaml")
    scratch = place.folder / "bare"
    scratch.mkdir(exist_ok=True)
    torch.manual_seed(0)
    job = JOBS["diffusion"](config, scratch)  # pyright: ignore[reportArgumentType]
    module = TrainingModule(
        task=job.task,
        optimizer=build(config.optimizer, **({"scales": job.scales} if job.scales else {})),
        schedule=build(config.schedule, steps=config.steps),
        average=build(config.ema),
        max_grad_norm=config.max_grad_norm,
        guard=build(config.guard),
    )
    device = torch.device(place.device)
    module.to(device)
    trainer = build({**OmegaConf.to_container(config.trainer), "deterministic": False})(callbacks=[])  # pyright: ignore[reportGeneralTypeIssues]
    attach(module, trainer)
    loaded = [job.task.ahead(job.steps[step]) for step in range(2 if place.toy else 20)]  # as workers hand them over
    ready = [module.task.prepare(batch, device) for batch in loaded]  # pyright: ignore[reportCallIssue]

    def loop(packs_of: Callable[[int], Any]) -> Callable[[], None]:
        def run() -> None:
            with trainer.strategy.precision_plugin.train_step_context():
                for number in range(len(loaded)):
                    module.step(packs_of(number))

        return run

    times = in_turn(
        {"prepared": loop(lambda number: module.task.prepare(loaded[number], device)), "before": loop(lambda number: ready[number])},  # pyright: ignore[reportCallIssue]
        place,
        rounds=5,
    )
    return times["prepared"] / len(loaded), times["before"] / len(loaded)


def aside(work: Callable[[], dict[str, float]], answer: Path) -> dict[str, float]:
    """What `work` gives, in a forked process: whoever has touched CUDA cannot fork any more, and commands are still to be started here.

    Raises:
        RuntimeError: it failed.
    """
    parent = Parent.here()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            parent.hold_to()
            answer.write_text(json.dumps(work()))
            code = 0
        except BaseException as error:
            answer.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"it ended with {code}: {answer.read_text() if answer.exists() else ''}")
    return json.loads(answer.read_text())
