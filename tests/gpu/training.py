"""Runs by command: the same losses as on the CPU, little time beside the steps, and exactly the same after `kill -9`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sora.system.processes import Parent
from tests.gpu import loops
from tests.gpu.record import Place, Report

WORKING = ("step", "data", "checkpoint")  # what a run's time between its start and its end is made of


def without_data(_: Place) -> str | None:
    """Why no shards can be made and read here."""
    lacking = [name for name in ("pyarrow", "av", "PIL") if find_spec(name) is None]
    return f"datasets need {', '.join(lacking)}, not here" if lacking else None


def training(place: Place) -> Iterator[Report]:
    """b_2 and the toy through `sora train` on shards that are made here, and the toy again, killed on its way.

    step_share_b_2, data_share_b_2, checkpoint_share_b_2: of the time after the start. loop_share_b_2, draws_share_b_2: see `loops.shares`.
    resumed_is_equal: 1 where the losses of a killed and resumed run have the same bits; resumed_difference_otherwise: their largest
    relative difference without deterministic algorithms. loss_error: that of the toy's losses in float32 from those of a CPU.
    """
    home = place.folder / "training"
    steps = 6 if place.toy else 200
    data = dataset(place.folder / "data", count=24 if place.toy else 400)
    common = [*data, "log_every=1", f"steps={steps}", f"checkpoint.every={max(2, steps // 4)}"]
    here = ["trainer=gpu"] if place.device == "cuda" else ["trainer=cpu"]
    yield from _timed(place, home, [*common, *here])

    exact = ["experiment=toy", *common, *here, "trainer.precision=32-true", "trainer.deterministic=true"]
    cpu = begun("train", "experiment=toy", *common, "trainer=cpu", f"output={home}/cpu", home=home / "of_cpu")  # meanwhile
    toy = losses(sora_train(home, "there", *exact))
    killed = killed_and_resumed(home, "killed", exact, at=steps // 2)
    yield Report(figures={"resumed_is_equal": float(killed == toy)}, note=f"last losses {killed[-1].hex()} and {toy[-1].hex()}")
    free = killed_and_resumed(home, "free", [*exact, "trainer.deterministic=false"], at=steps // 2)
    yield Report(figures={"resumed_difference_otherwise": apart(free, toy)})
    ended(cpu, "sora train trainer=cpu", home=home / "of_cpu")
    yield Report(figures={"loss_error": apart(toy, losses(home / "cpu"))})


def _timed(place: Place, home: Path, common: Sequence[str]) -> Iterator[Report]:
    """A run of b_2: where its time went."""
    size = ["dit.width=32", "dit.heads=2", "dit.depth=2", "dit.rope.axes=[4,6,6]"] if place.toy else []
    log = "log_every=2" if place.toy else "log_every=10"
    folder = sora_train(home, "b_2", "dit=b_2", *size, "text=byte", "plan.budget=4096", *common, log, "workers=4")
    account = [json.loads(line) for line in (folder / "goodput.jsonl").read_text().splitlines()][-1]
    yield Report(row={"run": "b_2", **account})
    working = sum(account[name] for name in WORKING)
    yield Report(figures={f"{name}_share_b_2": account[name] / working for name in WORKING})
    found = loops.aside(lambda: loops.shares(place, folder), home / "shares.json")
    yield Report(figures={f"{name}_b_2": value for name, value in found.items()})


def dataset(home: Path, *, count: int) -> list[str]:
    """The words for a dataset of the world and a VAE, which are made if they are not there."""
    if not (home / "ready").exists():
        sora("prepare", "source=world", f"count={count}", f"output={home}/world", "workers=2", home=home)
        sora("train", "experiment=toy_vae", f"data.folders=[{home}/world]", f"output={home}/vae", "steps=4", "trainer=cpu", home=home)
        sora("encode", f"vae={home}/vae", f"data={home}/world", "text=byte", "device=cpu", home=home)
        (home / "ready").touch()
    return [f"vae={home}/vae", f"data.folders=[{home}/world]"]


def begun(*words: str, home: Path, until: int = 0) -> int:
    """Start a command in a forked process, which need not import anything anew; its number. What it prints goes to HOME/said.

    until: the line of metrics.jsonl after which it waits to be killed, however late whoever kills it looks (0: it does not).
    """
    home.mkdir(parents=True, exist_ok=True)
    parent = Parent.here()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        parent.hold_to()  # in a session of its own it is out of reach of who ends the section
        os.setsid()
        said = os.open(home / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from sora.cli import main

        if until:
            _waiting(until)
        code = main(list(words))
    finally:
        os._exit(code)


def _waiting(until: int) -> None:
    from sora.runs.jsonl import MetricsLog

    plain, written = MetricsLog.write, []

    def write(log: MetricsLog, values: Mapping[str, Any]) -> bool:
        done = plain(log, values)
        written.append(done)
        if len(written) > until:
            time.sleep(3600)
        return done

    MetricsLog.write = write


def sora(*words: str, home: Path) -> None:
    """Run a command; a RuntimeError with its last lines if it fails."""
    ended(begun(*words, home=home), f"sora {' '.join(words)}", home=home)


def ended(child: int, said: str, *, home: Path) -> None:
    """Wait for a command that has begun; a RuntimeError with its last lines if it fails."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"{said} ended with {code}: {(home / 'said').read_text(errors='replace')[-1500:]}")


def sora_train(home: Path, name: str, *words: str) -> Path:
    sora("train", *words, f"output={home}/{name}", home=home)
    return home / name


def losses(folder: Path) -> list[float]:
    """Of each logged step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


def killed_and_resumed(home: Path, name: str, words: Sequence[str], *, at: int) -> list[float]:
    """The losses of a run that is killed once it has logged step `at`, and goes on."""
    folder = home / name
    child, log = begun("train", *words, f"output={folder}", home=home, until=at), folder / "metrics.jsonl"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if log.exists() and len(log.read_text().splitlines()) >= at:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    else:
        raise RuntimeError(f"the run that was to be killed at step {at} ended before: {(home / 'said').read_text(errors='replace')[-500:]}")
    sora("train", f"resume={folder}", home=home)
    return losses(folder)
