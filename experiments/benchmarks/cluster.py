"""What our loop, checkpoints, copies of the model and restarts cost, and what a launch on thousands of ranks asks for: `make bench-cluster`
writes cluster.json.

loop_overhead: what a step of `sora train` takes beyond the same network's forward, backward, clipping, optimiser and average in a plain
loop over the same batches in memory, over a step of 100 ms; the two take turns, by whole logging windows, so that every callback, check and
line of the log is in it. checkpoint_block_share: how long training stands still for a save that another thread writes, over the default
interval at 100 ms a step (rows: how much slower steps are meanwhile, as the writer takes the same cores here). ddp_scaling_2: processor
seconds per sample of one process over those of two processes, a thread each. resume_vs_fresh_start: seconds from the command to the end of
the first step, of a run that goes on over one that begins. Parts take turns; figures are medians over rounds. The rest is in
`experiments/cluster_prices.py` and `experiments/cluster_scale.py`.
"""

from __future__ import annotations

import contextlib
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

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments import cluster_scale  # noqa: E402
from sora import cli  # noqa: E402
from sora.configs.build import build  # noqa: E402
from sora.configs.compose import compose, config_dir  # noqa: E402
from sora.jobs import diffusion_job  # noqa: E402
from sora.storage import write_json  # noqa: E402
from sora.training.callbacks import Checkpoints  # noqa: E402
from sora.training.metrics import read  # noqa: E402
from sora.training.module import TrainingModule  # noqa: E402

STEP = 0.1  # seconds
WINDOW, WARM_UP = 10, 10  # steps of a logging window, and before anything is measured
LOOP_WINDOWS = 13  # the first of them begins within the warm-up
SCALING_ROUNDS, SCALING_STEPS = 4, 16
START_ROUNDS = 5
SAVES, SAVE_EVERY = 3, 6
SMALL = ["dit.width=192", "dit.depth=6", "dit.heads=6", "dit.rope.axes=[8,12,12]", "plan.budget=512"]  # about 100 ms a step
# as many tokens for a weight as a pack of real training has at the least: the optimiser is every rank's, whatever the pack
WIDE_PACKS = [*SMALL[:1], "dit.depth=3", *SMALL[2:4], "plan.budget=1536"]
LARGE = ["dit=s_2", "plan.budget=512"]


def prepared(folder: Path) -> list[str]:
    """Words that train on a small encoded world."""
    from sora.vae import artefact

    world = ["source=world", f"output={folder}/world", "count=24", "workers=0", "source.heldout=4"]
    world += ["source.world.sizes=[[64,64]]", "source.world.seconds=[2.0]"]
    torch.manual_seed(0)
    artefact.save(build(_plain(config_dir() / "vae" / "toy.yaml")), folder / "vae", config={})
    for verb, words in (("prepare", world), ("encode", [f"vae={folder}/vae", f"data={folder}/world", "text=byte", "threads=1"])):
        assert cli.run(verb, words) == 0
    settings = ["workers=0", "trainer.threads=1", f"log_every={WINDOW}", "checkpoint.every=1000000", "plan.window=8"]
    return ["experiment=toy", f"vae={folder}/vae", f"data.folders=[{folder}/world]", *settings]


def _plain(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text())


# ---- the loop


def loop(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Windows of `sora train` and of the plain loop over the same batches take turns in one process: the machine's speed changes from
    minute to minute by more than what is measured."""
    steps = WARM_UP + LOOP_WINDOWS * WINDOW
    said = [*words, *SMALL, f"steps={steps + 1}"]
    rows: list[dict[str, Any]] = []
    plain, without = TrainingModule.training_step, bare(said, folder / "bare", steps)
    began: list[float] = []

    def marked(self: TrainingModule, batch: Any, number: int) -> None:
        began.append(time.perf_counter())
        done = len(began) - 1
        if done >= WARM_UP and (done - WARM_UP) % WINDOW == 0:
            ours = (began[-1] - began[-1 - WINDOW]) / WINDOW
            theirs = [next(without) for _ in range(WINDOW)]
            rows.append({"step_seconds": ours, "bare_step_seconds": statistics.fmean(theirs)})
            began[-1] = time.perf_counter()
        plain(self, batch, number)

    with mock.patch.object(TrainingModule, "training_step", marked), quiet():
        assert cli.run("train", [*said, f"output={folder}/loop"]) == 0
    del rows[0]  # of the warm-up
    for row in rows:
        row["overhead_seconds"] = row["step_seconds"] - row["bare_step_seconds"]
    return statistics.median(row["overhead_seconds"] for row in rows) / STEP, rows


def bare(words: list[str], folder: Path, steps: int) -> Iterator[float]:
    """Seconds of each step of a plain loop over the same batches, which are in memory."""
    config = compose("train", words).config
    with quiet():
        job = diffusion_job(config, folder)
        batches = [job.steps[step] for step in range(steps)]
    task, device = job.task, torch.device("cpu")
    trained = {name: value for name, value in task.named_parameters() if value.requires_grad}
    (optimizer,) = build(config.optimizer)(trained)
    average, schedule = build(config.ema), build(config.schedule, steps=config.steps)
    average.follow(trained)
    for step, batch in enumerate(batches):
        began = time.perf_counter()
        packs = task.prepare(batch, device)
        count = torch.stack([pack.count for pack in packs]).sum()
        for pack in packs:
            (task(pack).total / count).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * schedule(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(trained, step + 1)
        yield time.perf_counter() - began


def ours(words: list[str], folder: Path) -> list[float]:
    """Seconds from each step's beginning to the next one's under `sora train`."""
    marks: list[float] = []
    plain = TrainingModule.training_step

    def marked(self: TrainingModule, batch: Any, number: int) -> None:
        marks.append(time.perf_counter())
        plain(self, batch, number)

    with mock.patch.object(TrainingModule, "training_step", marked), quiet():
        assert cli.run("train", [*words, f"output={folder}"]) == 0
    return [later - earlier for earlier, later in pairwise(marks)]


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


def processor_seconds(words: list[str], folder: Path, *, ranks: int) -> Callable[[], float]:
    """Begin a run; what is returned waits for its end and gives the processor seconds of all its ranks for a sample, after the warm-up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}", "trainer.precision=32-true", "trainer.deterministic=true"]
    said = [*words, *WIDE_PACKS, *(many if ranks > 1 else []), "trainer.threads=1", "plan.packs=2", "log_every=1"]
    notes = [folder.with_name(f"{folder.name}-{rank}.json") for rank in range(ranks)]
    said += [f"steps={SCALING_STEPS}", f"output={folder}"]
    begun = [begin(notes[rank], said, rank=rank, ranks=ranks, port=port) for rank in range(ranks)]

    def ended() -> float:
        assert [process.wait() for process in begun] == [0] * ranks
        seen = [json.loads(path.read_text()) for path in notes]
        rows = read(folder / "metrics.jsonl")
        samples = rows[-2]["samples"] - rows[3]["samples"]  # from the fifth step's beginning to the last one's
        return sum(each[-1][1] - each[4][1] for each in seen) / samples

    return ended


def scaling(words: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Rows also hold the mean of two processes that run at once and know nothing of each other: what two cores cost each other here."""
    rows = []
    for number in range(SCALING_ROUNDS):
        alone = processor_seconds(words, folder / f"on-1-{number}", ranks=1)()
        together = processor_seconds(words, folder / f"on-2-{number}", ranks=2)()
        apart = [processor_seconds(words, folder / f"apart-{one}-{number}", ranks=1) for one in range(2)]
        strangers = statistics.fmean(ended() for ended in apart)
        rows.append({"cpu_seconds_a_sample_1": alone, "cpu_seconds_a_sample_2": together, "cpu_seconds_a_sample_of_strangers": strangers})
    return statistics.median(row["cpu_seconds_a_sample_1"] / row["cpu_seconds_a_sample_2"] for row in rows), rows


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


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            words = prepared(folder)
        parts = {"loop_overhead": loop, "checkpoint_block_share": checkpoints, "ddp_scaling_2": scaling, "resume_vs_fresh_start": starts}
        for figure, part in parts.items():
            figures[figure], rows[figure] = part(words, folder)
            print(f"{figure}: {figures[figure]:.4g}", flush=True)
    rows["scale"] = cluster_scale.measure()
    if (ROOT / "experiments" / "cluster_prices.py").exists():
        from experiments import cluster_prices

        priced, rows["prices"] = cluster_prices.measure()
        figures |= priced
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    settings = {"loop": [LOOP_WINDOWS, WINDOW], "scaling": [SCALING_ROUNDS, SCALING_STEPS], "starts": START_ROUNDS, "saves": SAVES}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    told = {"figures": figures, "rows": rows, "settings": settings, "machine": machine, "versions": versions, "commit": commit}
    write_json(HERE / "cluster.json", told)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    main()
