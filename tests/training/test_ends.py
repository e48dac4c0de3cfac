"""However a rank, its launcher or its disk ends, the job ends with it: soon, saved if it can be, and nobody stays behind."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sora import cli
from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.training.faults.peers import Peers
from sora.training.faults.watchdog import STALLED
from sora.training.logging.goodput import totals
from sora.training.module import TrainingModule
from tests.trained import world_dataset
from tests.training.logging.test_tracker import gone, members
from tests.training.stand_ins import fit
from tests.training.test_parity import launched

pytestmark = [pytest.mark.slow, pytest.mark.long]
COUNT = 2
EVER = 86400.0  # seconds: who ends was ended
SOON = 180.0  # on a machine that does much else; nobody here ends by itself in less than `EVER`


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return world_dataset(tmp_path_factory.mktemp("ends") / "world", clips=8)


class Job:
    """Two ranks of `sora train` with a loader worker each, started by a process that only waits for them, all in one session."""

    def __init__(self, world: Path, folder: Path, *words: str, step: Callable[[int, int], None] = lambda rank, step: None) -> None:
        self.folder, self.run = folder, folder / "run"
        trainer = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={COUNT}", "trainer.precision=32-true", "trainer.threads=1"]
        said = ["experiment=toy_vae", f"data.folders=[{world}]", f"output={self.run}", "steps=100000", "log_every=1", "workers=1"]
        self._words = [*said, *trainer, "plan.packs=2", "plan.shapes=[[5,16,16]]", "checkpoint.every=100000", *words]
        self.session = os.fork()
        if self.session == 0:
            os.setsid()
            self._launch(step)

    def _launch(self, step: Callable[[int, int], None]) -> None:
        ranks = []
        for rank in range(COUNT):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = self._train(rank, step)
                finally:
                    os._exit(code)
            ranks.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
        (self.folder / "codes").write_text(" ".join(map(str, codes)))
        os._exit(0)

    def _train(self, rank: int, step: Callable[[int, int], None]) -> int:
        said = os.open(self.folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{self.folder}/store", rank=rank, world_size=COUNT)
        launched(rank, COUNT)
        rank_zero_only.rank = rank
        plain = TrainingModule.training_step

        def noted(module: TrainingModule, batch, number: int) -> None:
            step(rank, module.counters.step)
            plain(module, batch, number)

        TrainingModule.training_step = noted
        (self.folder / f"pid-{rank}").write_text(str(os.getpid()))
        return cli.run("train", self._words)

    def rank(self, number: int) -> int:
        return int((self.folder / f"pid-{number}").read_text())

    def reach(self, step: int, *, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run.exists() and len(read(self.run / "metrics.jsonl")) >= step:
                return
            time.sleep(0.05)
        raise AssertionError([self.said(rank) for rank in range(COUNT)])

    def said(self, rank: int) -> str:
        return (self.folder / f"said-{rank}").read_text()

    def codes(self) -> list[int]:
        return [int(code) for code in (self.folder / "codes").read_text().split()]


@pytest.fixture
def start(world, tmp_path) -> Iterator[Callable[..., Job]]:
    begun = []

    def launch(*words: str, **more) -> Job:
        begun.append(Job(world, tmp_path, *words, **more))
        return begun[-1]

    yield launch
    for job in begun:
        for process in members(job.session):
            os.kill(process, signal.SIGKILL)
        os.waitpid(job.session, 0)


def test_a_dead_rank_ends_one_that_is_busy_for_longer(start):
    """It is in no collective, so that nothing but its peer's connection tells it. What it then waits for is less than ten seconds."""

    def step(rank: int, step: int) -> None:
        if step == 3:
            time.sleep(EVER if rank == 0 else 0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    job = start("watchdog.limit=0", "watchdog.start=0", step=step)
    job.reach(3)
    assert gone(job.session, seconds=SOON), members(job.session)
    assert job.codes() == [STALLED, -signal.SIGKILL]
    assert "rank 1 has died, so rank 0 ends too" in job.said(0)
    waits = {name: value.default for name, value in inspect.signature(Peers).parameters.items()}
    assert waits == {"grace": 5.0, "reaction": 2.0}  # the kernel tells of the death; no other clock runs until then


def test_ranks_save_and_end_when_their_launcher_is_killed(start):
    job = start()
    job.reach(3)
    os.kill(job.session, signal.SIGKILL)
    assert gone(job.session, seconds=SOON), members(job.session)
    newest = checkpoint.newest(job.run / "checkpoints")
    assert checkpoint.step_of(newest) == read(job.run / "metrics.jsonl")[-1]["step"]
    assert "stopped and saved" in job.said(0)


def test_a_rank_that_stands_still_is_waited_for_in_vain_and_that_is_reported(start):
    limit = 8.0  # far above a step of a few milliseconds
    job = start(f"watchdog.limit={limit}")
    job.reach(3)
    os.kill(job.rank(1), signal.SIGSTOP)
    end = time.monotonic() + SOON
    report = job.run / "stalled-0.txt"
    while not (report.exists() and "training_step" in report.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    told = report.read_text()
    assert "rank 0 has not moved for" in told and "phase step" in told and "training_step" in told
    os.kill(job.rank(1), signal.SIGKILL)  # as launchers do: srun after 10 s, torchrun after 30
    assert gone(job.session, seconds=SOON)
    assert job.codes() == [STALLED, -signal.SIGKILL]


def test_signals_while_a_checkpoint_is_written_change_nothing(tmp_path, monkeypatch):
    plain, sent = checkpoint.Saving.commit, []

    def interrupted(self, **settings):
        hurry = [signal.SIGINT] if sent.count(signal.SIGINT) < 2 else []  # the third would mean: stop unsaved
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, *hurry):
            os.kill(os.getpid(), number)
            sent.append(number)
        return plain(self, **settings)

    monkeypatch.setattr(checkpoint.Saving, "commit", interrupted)
    module = fit(tmp_path / "run", until=20, total=20, every=4)
    assert sent
    state = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints"))
    assert state.step == module.counters.step < 20


def test_the_account_of_a_run_that_was_stopped_covers_every_second_of_it(world, tmp_path, monkeypatch, capsys):
    run, plain = tmp_path / "run", TrainingModule.training_step

    def slow(module: TrainingModule, batch, number: int) -> None:
        time.sleep(0.05)
        if module.counters.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(module, batch, number)

    monkeypatch.setattr(TrainingModule, "training_step", slow)
    words = ["experiment=toy_vae", f"data.folders=[{world}]", f"output={run}", "steps=8", "workers=0", "trainer.threads=1"]
    began = time.time()
    assert cli.run("train", [*words, "log_every=2", "plan.shapes=[[5,16,16]]"]) == 128 + signal.SIGTERM
    time.sleep(0.5)
    assert cli.run("train", [f"resume={run}"]) == 0
    wall = time.time() - began
    lines = read(run / "goodput.jsonl")
    total = totals(lines)
    assert [(line["first"], line["last"]) for line in lines] == [(0, 4), (4, 8)]
    assert total["wall"] == pytest.approx(lines[-1]["ended"] - lines[0]["began"], rel=0.01)
    assert total["wall"] <= wall  # which has the reading of configurations too
    assert 0.5 <= total["seconds"]["down"] < wall - sum(line["step"] for line in lines)
    assert 8 * 0.05 <= total["useful"] == sum(line["step"] for line in lines)
    assert f"goodput {total['goodput']:.1%}" in capsys.readouterr().out
    before = [(run / name).read_bytes() for name in ("goodput.jsonl", "events.jsonl", "metrics.jsonl")]
    assert cli.run("train", [f"resume={run}"]) == 0
    assert before == [(run / name).read_bytes() for name in ("goodput.jsonl", "events.jsonl", "metrics.jsonl")]
    assert "goodput" not in capsys.readouterr().out  # a look at a finished run is no part of it
