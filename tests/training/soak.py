"""The torture: a real run that is killed at random moments, on one, two or four ranks, must end where an undisturbed one ends, to the bit.

    python -m tests.training.soak [seed] [kills]

The seed draws what is trained (the network or the VAE), how many packs a step has (2, 4, 8), and on how many ranks each start is. Ranks are
forked from this process, which has imported everything, so that a start takes a second. Half of the kills hit one rank alone: the others
have to end by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sora import cli
from sora.runs import checkpoint
from sora.runs.jsonl import read
from tests.trained import vae_artefact, world_dataset
from tests.training.test_parity import launched

EVERY, PACKS, RANKS = 8, (2, 4, 8), (1, 2, 4)
PATIENCE = 300.0  # seconds for a start, on a busy machine
END = 30.0  # seconds in which all processes of a job are gone once one was killed


@dataclass(frozen=True)
class Trained:
    """What is trained, "diffusion", "vae" or "captioner", and of how many packs a step is."""

    task: str
    packs: int

    @property
    def ranks(self) -> list[int]:
        """On how many it may be."""
        return [count for count in RANKS if self.packs % count == 0]

    def words(self, home: Path) -> list[str]:
        if self.task == "vae":
            plan = ["plan.shapes=[[5,16,16],[1,16,16]]", f"plan.batch={2 * self.packs}"]
            return ["experiment=toy_vae", f"data.folders=[{home}/world]", *plan]
        if self.task == "captioner":
            plan = ["plan.budget=120", "plan.window=2"]
            return ["experiment=toy_captioner", f"vae={home}/vae", f"data.folders=[{home}/world]", *plan]
        return ["experiment=toy", f"vae={home}/vae", f"data.folders=[{home}/world]", "plan.budget=120", "plan.window=2"]


@dataclass
class Told:
    """What came of a torture. ends: seconds that the other ranks lived on after one was killed; wasted: steps made again."""

    kills: int = 0
    ends: list[float] = field(default_factory=list)
    wasted: int = 0
    digest: str = ""


def forked(work: Callable[[], int | None], log: Path) -> int:
    """A process of its own group that does `work`; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        torch.set_num_threads(1)
        code = work() or 0
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        os._exit(code)


def words(home: Path, output: Path, what: Trained, *, steps: int) -> list[str]:
    often = [f"steps={steps}", "log_every=1", f"checkpoint.every={EVERY}", "trainer.threads=1", "workers=1", "watchdog.limit=60"]
    return [*what.words(home), f"plan.packs={what.packs}", *often, "ema=post_hoc", f"output={output}", "resume=auto"]


def prepared(home: Path) -> None:
    def work() -> int:
        world, vae = world_dataset(home / "world", clips=16), vae_artefact(home / "vae")
        return cli.run("encode", [f"vae={vae}", f"data={world}", "text=byte", "threads=1"])

    home.mkdir(parents=True, exist_ok=True)
    child = forked(work, home / "encode.log")
    assert os.waitpid(child, 0)[1] == 0, (home / "encode.log").read_text()


def started(home: Path, output: Path, what: Trained, *, count: int, steps: int) -> list[int]:
    """The processes of a job of `count` ranks that goes on with the run in `output`."""
    store = Path(tempfile.mkdtemp(dir=home)) / "store"
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={count}", "trainer.precision=32-true", "trainer.deterministic=true"]
    said = [*words(home, output, what, steps=steps), *([*many, "trainer.threads=1"] if count > 1 else [])]

    def work(rank: int) -> int:
        if count > 1:
            launched(rank, count)
            rank_zero_only.rank = rank  # a fork knows what was read when it was imported
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
        return cli.run("train", said)

    return [forked(lambda rank=rank: work(rank), home / f"{output.name}.log") for rank in range(count)]


def ended(processes: list[int], *, within: float) -> float:
    """Wait until none is left of these processes, nor of those that they started; the seconds it took."""
    began = time.monotonic()
    waiting = set(processes)
    groups = set(processes)
    while waiting or groups:
        assert time.monotonic() - began < within, f"still there after {within} s: ranks {waiting}, groups {groups}"
        waiting -= {process for process in waiting if os.waitpid(process, os.WNOHANG)[0]}
        for group in list(groups - waiting):
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                groups.discard(group)
        time.sleep(0.02)
    return time.monotonic() - began


def reached(output: Path) -> int:
    return max((row["step"] for row in read(output / "metrics.jsonl")), default=0)


def saved(output: Path) -> int:
    return max((checkpoint.step_of(path) or 0 for path in checkpoint.listed(output / "checkpoints")), default=0)


def torture(home: Path, output: Path, what: Trained, *, kills: int, steps: int, draw: random.Random, say: Callable[[str], object]) -> Told:
    """Kill a run so often, then let it end."""
    told = Told()
    for number in range(1, kills + 1):
        count = draw.choice(what.ranks)
        early = draw.random() < 0.2  # before its first step, wherever that finds it
        before = saved(output)
        aim = min(steps - 2, before + draw.randint(1, 2 * max(2, (steps - before) // (kills - number + 2))))
        processes = started(home, output, what, count=count, steps=steps)
        pause, began = draw.uniform(0.0, 2.0 if early else 0.3), time.monotonic()
        while not early and reached(output) < aim:
            assert time.monotonic() - began < PATIENCE, f"no step {aim} within {PATIENCE} s; see {home / f'{output.name}.log'}"
            time.sleep(0.01)
        time.sleep(pause)
        victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
        for process in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        seconds = ended(processes, within=END)
        told.kills += 1
        told.ends += [seconds] if len(victims) < count else []
        told.wasted += max(0, reached(output) - saved(output))
        where = f"at step {reached(output)}, saved {saved(output)}, gone in {seconds:.1f} s"
        say(f"{number}/{kills}: {len(victims)} of {count} ranks killed {where}")
    last = started(home, output, what, count=draw.choice(what.ranks), steps=steps)
    ended(last, within=PATIENCE)
    told.digest = digest(output, steps=steps)
    return told


def digest(output: Path, *, steps: int) -> str:
    """Of every number of the last checkpoint but the random states, which each number of ranks has its own of, and of the samples seen."""
    state = checkpoint.load(checkpoint.folder_of(output / "checkpoints", steps))
    found = hashlib.sha256(f"{state.samples} {state.tokens} {state.facts['counters']}".encode())
    for kind in sorted(set(state.tensors) - {"rng"}):
        for name in sorted(state.tensors[kind]):
            found.update(f"{kind}/{name}".encode() + state.tensors[kind][name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def alike(one: Path, other: Path) -> None:
    """Every line of the log says the same."""
    first, second = (read(folder / "metrics.jsonl") for folder in (one, other))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for a, b in zip(first, second, strict=True):
        assert (a["samples"], a["tokens"], a["lr"]) == (b["samples"], b["tokens"], b["lr"]), a["step"]
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"]), (a["step"], a["loss"], b["loss"])


def main(seed: int, kills: int) -> int:
    steps, began, draw = 12 * kills + 40, time.monotonic(), random.Random(seed)
    what = Trained(draw.choice(["diffusion", "vae", "captioner"]), draw.choice(PACKS))
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        home = Path(place)
        print(f"seed {seed}: task={what.task}, {what.packs} packs; {kills} kills in {steps} steps, a checkpoint every {EVERY}", flush=True)
        prepared(home)
        ended(started(home, home / "whole", what, count=1, steps=steps), within=10 * PATIENCE)
        wanted = digest(home / "whole", steps=steps)
        print(f"undisturbed: {wanted[:16]} after {time.monotonic() - began:.0f} s", flush=True)
        told = torture(home, home / "killed", what, kills=kills, steps=steps, draw=draw, say=lambda line: print(line, flush=True))
        alike(home / "killed", home / "whole")
    outcome = "the same to the last bit" if told.digest == wanted else f"ANOTHER: {told.digest[:16]}"
    longest = f", ranks that were left ended within {max(told.ends):.1f} s" if told.ends else ""
    print(
        f"{told.kills} x kill -9, {told.wasted} of {steps} steps made again{longest}, {time.monotonic() - began:.0f} s:"
        f" weights, averages and optimiser are {outcome}"
    )
    return int(told.digest != wanted)


if __name__ == "__main__":
    raise SystemExit(main(*(int(word) for word in [*sys.argv[1:], *("0", "15")[len(sys.argv) - 1 :]])))
