"""What our loop, checkpoints, copies of the model and restarts cost, and what a launch on thousands of ranks asks for: `make bench-cluster`
writes cluster.json.

loop_overhead: what a step of `sora train` takes beyond what a plain loop does too (preparing packs, forward, backward, the norm of the
gradients, optimiser and average), over a step of 100 ms: measured as all time between the beginnings of steps less the time inside these
functions, so that a machine that is slow for a while does not show as overhead, and less that of reading and packing clips, which is a
worker's and is done by no worker here. The network is one whose steps do take about 100 ms: after longer ones more of what the loop needs
has left the caches. Means over as many steps as are planned together, logged and planned as by default, so that every callback, hook,
check, plan and line of the log is in it. loop_overhead_cpu: the same by the processor's seconds of the thread that trains, which other
programs of the machine do not add to.
checkpoint_block_share: how long training stands still for a save that another thread writes, over the default interval
at 100 ms a step (rows: how much slower steps are meanwhile, as the writer takes the same cores here).
ddp_scaling_2: processor seconds of one process in a step over those of two that train together, a thread each and four packs a step.
ddp_scaling_2_busy: the same where another run of one process keeps the second core busy meanwhile, as the second rank does.
resume_vs_fresh_start: seconds from the command to the end of the first step, of a run that goes on over one that begins. Parts take turns;
figures are medians over rounds. `cluster.py PART …` measures only some parts anew and leaves the others as they are; `commits` says of
which code each is. The rest is in `experiments/cluster_prices.py` and `experiments/cluster_scale.py`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments import cluster_scale  # noqa: E402
from sora import cli  # noqa: E402
from sora.config.build import build  # noqa: E402
from sora.config.compose import config_dir  # noqa: E402
from sora.data.loading.latents import LatentBatches  # noqa: E402
from sora.system.files import write_json  # noqa: E402
from sora.training.callbacks.checkpoints import Checkpoints  # noqa: E402
from sora.training.diffusion_task import DiffusionTask  # noqa: E402
from sora.training.logging.rank_timing import Stopwatch  # noqa: E402
from sora.training.module import TrainingModule  # noqa: E402

STEP = 0.1  # seconds
WINDOW, WARM_UP = 64, 10  # steps that are planned together, and before anything is measured
LOOP_ROUNDS = 5
SCALING_ROUNDS, SCALING_STEPS = 5, 14
START_ROUNDS = 5
SAVES, SAVE_EVERY = 3, 6
HUNDRED = ["dit.width=96", "dit.depth=3", "dit.heads=3", "dit.rope.axes=[8,12,12]", "plan.budget=512"]  # milliseconds a step, about
SMALL = ["dit.width=192", "dit.depth=6", "dit.heads=6", "dit.rope.axes=[8,12,12]", "plan.budget=512"]
LARGE = ["dit=s_2", "plan.budget=512"]


def prepared(folder: Path) -> list[str]:
    """Words that train on a small encoded world."""
    from sora.vae import artefact

    world = ["source=world", f"output={folder}/world", "count=160", "workers=0", "source.heldout=4"]
    world += ["source.world.sizes=[[64,64]]", "source.world.seconds=[2.0]"]
    torch.manual_seed(0)
    artefact.save(build(_plain(config_dir() / "vae" / "toy.yaml")), folder / "vae", config={})
    for verb, words in (("prepare", world), ("encode", [f"vae={folder}/vae", f"data={folder}/world", "text=byte", "threads=1"])):
        assert cli.run(verb, words) == 0
    settings = ["workers=0", "trainer.threads=1", "checkpoint.every=1000000"]
    return ["experiment=toy", f"vae={folder}/vae", f"data.folders=[{folder}/world]", *settings]


def _plain(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text())


# ---- the loop


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of this thread on a processor."""
    return time.perf_counter(), time.thread_time()


def timed(plain: Callable[..., Any], sums: list[float], sign: int) -> Callable[..., Any]:
    """The same function, which adds the seconds of each call to sums."""

    def run(*given: Any, **named: Any) -> Any:
        wall, cpu = clocks()
        try:
            return plain(*given, **named)
        finally:
            now_wall, now_cpu = clocks()
            sums[0] += sign * (now_wall - wall)
            sums[1] += sign * (now_cpu - cpu)

    return run


class Parts:
    """The seconds of functions that a plain loop would call, too (`work`), without those of ours that they call, and of reading data."""

    def __init__(self) -> None:
        self.work, self.reading = [0.0, 0.0], [0.0, 0.0]
        self.rows: list[np.ndarray] = []  # the clocks, work and reading so far, at the beginning of each step
        self._inside = False

    def step(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)  # Lightning looks at how it is called
        def noted(*given: Any, **named: Any) -> Any:
            self.rows.append(np.array((clocks(), self.work, self.reading)))
            return plain(*given, **named)

        return noted

    def counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        timing = timed(plain, self.work, 1)

        def outermost(*given: Any, **named: Any) -> Any:
            if self._inside:
                return plain(*given, **named)
            self._inside = True
            try:
                return timing(*given, **named)
            finally:
                self._inside = False

        return outermost

    def taken_out(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        return timed(plain, self.work, -1)  # called inside of work only

    def read(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        return timed(plain, self.reading, 1)


def parted(words: list[str], folder: Path) -> np.ndarray:
    """Of each step after the warm-up: seconds up to the next one, those of work and of reading in them, by both clocks: (steps, 3, 2)."""
    parts = Parts()
    plain = ((DiffusionTask, "prepare"), (TrainingModule, "_learn"), (TrainingModule, "_norms"))
    with contextlib.ExitStack() as stack, quiet():
        for owner, name in (*plain, (TrainingModule, "_update"), (torch.optim.Optimizer, "zero_grad")):
            stack.enter_context(mock.patch.object(owner, name, parts.counted(getattr(owner, name))))
        for name in ("start", "stop"):
            stack.enter_context(mock.patch.object(Stopwatch, name, parts.taken_out(getattr(Stopwatch, name))))
        stack.enter_context(mock.patch.object(LatentBatches, "_batch", parts.read(LatentBatches._batch)))
        stack.enter_context(mock.patch.object(TrainingModule, "training_step", parts.step(TrainingModule.training_step)))
        assert cli.run("train", [*words, f"output={folder}"]) == 0
    return np.diff(np.stack(parts.rows), axis=0)[WARM_UP:]


def ours(words: list[str], folder: Path) -> list[float]:
    """Seconds from each step's beginning to the next one's under `sora train`."""
    marks: list[float] = []
    plain = TrainingModule.training_step

    def marked(self: TrainingModule, batch: Any, number: int) -> None:
        marks.append(time.perf_counter())
        plain(self, batch, number)

    with mock.patch.object(TrainingModule, "training_step", marked), quiet():
        assert cli.run("train", [*words, f"output={folder}"]) == 0
    return intervals(marks)


def intervals(marks: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(marks)]


def loop(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    said = [*words, *HUNDRED, f"steps={WINDOW + WARM_UP + 1}"]
    rows: list[dict[str, Any]] = []
    for number in range(LOOP_ROUNDS):
        means = parted(said, folder / f"loop-{number}").mean(axis=0)
        rows.append({})
        for kind, (whole, work, reading) in zip(("", "cpu_"), means.T.tolist(), strict=True):
            row = {"step_seconds": whole, "work_seconds": work, "reading_seconds": reading, "overhead_seconds": whole - work - reading}
            rows[-1] |= {f"{kind}{name}": seconds for name, seconds in row.items()}
    return statistics.median(row["overhead_seconds"] for row in rows) / STEP, rows


# ---- checkpoints


def checkpoints(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Of a network of 33 million weights."""
    stood: list[float] = []
    plain = Checkpoints.on_train_batch_end

    def timed(self: Checkpoints, *given: Any) -> None:
        began = time.perf_counter()
        plain(self, *given)
        stood.append(time.perf_counter() - began)

    steps = (SAVES + 1) * SAVE_EVERY
    with mock.patch.object(Checkpoints, "on_train_batch_end", timed):
        saving = ours([*words, *LARGE, f"steps={steps}", f"checkpoint.every={SAVE_EVERY}", "checkpoint.keep=1"], folder / "saving")
    steps_alone = [saving[step] - stood[step] for step in range(steps - 1)]
    saves = list(range(SAVE_EVERY - 1, steps - 1, SAVE_EVERY))  # the last one is waited for: the run ends
    written = {step for save in saves for step in range(save + 1, save + 1 + SAVE_EVERY // 2)}
    calm = statistics.median(steps_alone[step] for step in range(2, steps - 1) if step not in written and step not in saves)
    blocked = sum(stood[: steps - 1]) / len(saves)
    slower = sum(steps_alone[step] - calm for step in written if step < steps - 1) / len(saves)
    interval = _plain(config_dir() / "train.yaml")["checkpoint"]["every"] * STEP
    size = sum(path.stat().st_size for path in (folder / "saving" / "checkpoints").rglob("*") if path.is_file())
    row = {"bytes": size, "step_seconds": calm, "blocked_seconds": blocked, "slower_seconds": slower, "interval_seconds": interval}
    return blocked / interval, [row | {"blocks_one_percent_every_seconds": blocked / 0.01}]


# ---- processes of their own


def child(notes: str, stop: int, leave: int, words: list[str]) -> None:
    """`sora train` in a process that notes the clock and its processor seconds at every step. stop: the step in which a signal asks it to
    stop; leave: the step after which it is gone; -1: none."""
    seen: list[tuple[float, float]] = []
    plain = TrainingModule.training_step

    def noted(self: TrainingModule, batch: Any, number: int) -> None:
        seen.append((time.time(), time.process_time()))
        if len(seen) - 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, batch, number)
        if len(seen) - 1 == leave:
            Path(notes).write_text(json.dumps(time.time()))
            os._exit(0)

    TrainingModule.training_step = noted
    code = cli.run("train", words)
    Path(notes).write_text(json.dumps(seen))
    raise SystemExit(code)


def begin(
    notes: Path, words: list[str], *, stop: int = -1, leave: int = -1, rank: int = 0, ranks: int = 1, port: int = 0
) -> subprocess.Popen:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ranks > 1:
        variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        variables |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "bench", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).resolve()), "child", str(notes), str(stop), str(leave), *words]
    return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trainings(words: list[str], folder: Path, *, ranks: int) -> list[subprocess.Popen]:
    """The processes of one run, begun; each leaves its notes beside the run's folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}", "trainer.precision=32-true", "trainer.deterministic=true"]
    said = [*words, *SMALL, *(many if ranks > 1 else []), "trainer.threads=1", "plan.packs=4", f"steps={SCALING_STEPS}"]
    notes = [folder.with_name(f"{folder.name}-{rank}.json") for rank in range(ranks)]
    return [begin(notes[rank], [*said, f"output={folder}"], rank=rank, ranks=ranks, port=port) for rank in range(ranks)]


def seconds_of_steps(folder: Path, *, ranks: int) -> np.ndarray:
    """Processor seconds of all ranks in each step after the warm-up."""
    seen = [json.loads(folder.with_name(f"{folder.name}-{rank}.json").read_text()) for rank in range(ranks)]
    return sum(np.diff([seconds for _, seconds in each[4:]]) for each in seen)  # pyright: ignore[reportReturnType]


def scaling(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """A step has the same clips however many ranks there are, so each is compared with itself."""
    rows = []
    for number in range(SCALING_ROUNDS):
        found = {}
        for name, runs in (("alone", [("alone", 1)]), ("beside", [("one", 1), ("other", 1)]), ("together", [("both", 2)])):
            folders = [(folder / f"{which}-{number}", ranks) for which, ranks in runs]
            begun = [process for place, ranks in folders for process in trainings(words, place, ranks=ranks)]
            assert [process.wait() for process in begun] == [0] * len(begun)
            found[name] = np.mean([seconds_of_steps(place, ranks=ranks) for place, ranks in folders], axis=0)
        steps = np.stack(list(found.values()), axis=1).tolist()
        rows += [{f"cpu_seconds_{name}": seconds for name, seconds in zip(found, step, strict=True)} for step in steps]
    alone, beside = (
        statistics.median(row[f"cpu_seconds_{name}"] / row["cpu_seconds_together"] for row in rows) for name in ("alone", "beside")
    )
    return alone, [*rows, {"ddp_scaling_2_busy": beside}]


def starts(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """With a network of 33 million weights, whose checkpoint is read and verified."""
    said = [*words, *LARGE, "steps=50"]
    assert begin(folder / "base.json", [*said, f"output={folder}/base"], stop=1).wait() == 128 + signal.SIGTERM
    rows = []
    for number in range(START_ROUNDS):
        row = {}
        for name, given in (("fresh", [*said, f"output={folder}/fresh-{number}"]), ("resumed", [f"resume={folder}/base"])):
            notes, began = folder / f"{name}-{number}.json", time.time()
            assert begin(notes, given, leave=0).wait() == 0
            row[f"{name}_seconds"] = json.loads(notes.read_text()) - began
        shutil.rmtree(folder / f"fresh-{number}")
        rows.append(row)
    return statistics.median(row["resumed_seconds"] / row["fresh_seconds"] for row in rows), rows


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def figures_of(rows: dict[str, Any]) -> dict[str, float]:
    """Those that come beside a part's own, from its rows."""
    found = {}
    if "loop_overhead" in rows:
        found["loop_overhead_cpu"] = statistics.median(row["cpu_overhead_seconds"] for row in rows["loop_overhead"]) / STEP
    if "ddp_scaling_2" in rows:
        found["ddp_scaling_2_busy"] = rows["ddp_scaling_2"][-1]["ddp_scaling_2_busy"]
    return found


def main(chosen: list[str]) -> None:
    """Measure all parts, or only the chosen ones anew; what each has found is written at once."""
    from experiments import cluster_prices

    torch.set_num_threads(1)
    path = HERE / "cluster.json"
    told = json.loads(path.read_text()) if chosen else {"figures": {}, "rows": {}, "commits": {}}
    told["settings"] = {"loop": [LOOP_ROUNDS, WINDOW], "scaling": [SCALING_ROUNDS, SCALING_STEPS], "starts": START_ROUNDS, "saves": SAVES}
    told["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    told["versions"] = {"python": sys.version.split()[0], "torch": torch.__version__}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    parts = {"loop_overhead": loop, "checkpoint_block_share": checkpoints, "ddp_scaling_2": scaling, "resume_vs_fresh_start": starts}
    with TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            words = prepared(folder)
        for part in chosen or [*parts, "scale", "prices"]:
            if part in parts:
                told["figures"][part], told["rows"][part] = parts[part](words, folder)
                print(f"{part}: {told['figures'][part]:.4g}", flush=True)
            elif part == "scale":
                told["rows"][part] = cluster_scale.measure()
            else:
                priced, told["rows"][part] = cluster_prices.measure()
                told["figures"] |= priced
            told["figures"] |= figures_of(told["rows"])
            told.setdefault("commits", {})[part] = commit
            write_json(path, told)
    print(json.dumps(told["figures"], indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    main(sys.argv[1:])
