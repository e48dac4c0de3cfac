"""Whole commands on ranks that a launcher started: the default trainer takes them all, any other than theirs writes nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sora import cli, train
from tests.trained import world_dataset
from tests.training.groups import forked, in_ranks
from tests.training.test_parity import launched

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    world = world_dataset(tmp_path_factory.mktemp("started") / "world", clips=8)
    few = ["plan.shapes=[[5,16,16]]", "plan.packs=2", "plan.batch=4", "steps=3", "log_every=1", "workers=0", "trainer.threads=1"]
    return ["experiment=toy_vae", f"data.folders=[{world}]", *few]


def steps(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.mark.long
def test_the_default_trainer_is_one_run_on_however_many_were_started(words, tmp_path):
    """On two ranks, then on one and on two again, without a word about it: the steps of a run on one alone."""
    assert cli.run("train", [*words, f"output={tmp_path / 'alone'}", "schedule=constant"]) == 0
    run, more = tmp_path / "run", "resume_allow=[steps,schedule]"

    def work(given: list[str]):
        def on_rank(rank: int) -> None:
            launched(rank, 2)
            assert cli.run("train", given) == 0

        return on_rank

    in_ranks(2, tmp_path, work([*words, f"output={run}", "schedule=constant"]))
    assert [step for step, _ in steps(run)] == [1, 2, 3]
    for (step, loss), (number, wanted) in zip(steps(run), steps(tmp_path / "alone"), strict=True):
        assert step == number and loss == pytest.approx(wanted, rel=1e-5)
    assert cli.run("train", [f"resume={run}", "steps=4", more]) == 0
    in_ranks(2, tmp_path, work([f"resume={run}", "steps=5", more]))
    assert [step for step, _ in steps(run)] == [1, 2, 3, 4, 5]


def test_a_rank_that_comes_when_the_run_is_made_already_trains_with_the_one_that_made_it(words, tmp_path, monkeypatch):
    """With resume=auto, as job.sh has it, it finds a run to go on with, with whole paths of datasets: it was refused as another run's."""
    world = Path(words[1].removeprefix("data.folders=[").removesuffix("]"))
    monkeypatch.chdir(world.parent)
    given = [words[0], f"data.folders=[{world.name}]", *words[2:], f"output={tmp_path / 'run'}", "resume=auto"]
    settle = train.settle

    def late(*said):
        end = time.monotonic() + 60
        while not (tmp_path / "run/run.json").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        return settle(*said)

    def on_rank(rank: int) -> None:
        launched(rank, 2)
        if rank:
            train.settle = late
        assert cli.run("train", given) == 0

    in_ranks(2, tmp_path, on_rank)
    assert [step for step, _ in steps(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize(("more", "why"), [(["trainer=cpu"], "trainer=ddp"), (["plan.packs=1"], "plan.packs to a multiple of 2")])
def test_what_does_not_fit_the_ranks_leaves_no_folder(words, tmp_path, capfd, more, why):
    def on_rank(rank: int) -> int:
        launched(rank, 2)
        return cli.run("train", [*words, *more, f"output={tmp_path / 'run'}"])

    assert forked(2, on_rank) == [2, 2]
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err.count(why) == 2


@pytest.mark.long
def test_a_trainer_starts_the_other_ranks_itself(words, tmp_path):
    """They were told who started them under the name by which commands are told it, which takes it away: the second took itself for half
    of torchrun's, and the first waited for it."""
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", f"output={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "sora.train", *words, *ddp]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in steps(tmp_path / "run")] == [1, 2, 3]


def test_a_run_keeps_what_it_computes_in_wherever_it_goes_on(words, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    assert cli.run("train", [*words, f"output={run}"]) == 0
    monkeypatch.setattr("sora.system.devices.numerics", lambda kind: {"precision": "bf16-mixed", "deterministic": False})  # a GPU's
    again = ["steps=4", "resume_allow=[steps,schedule]"]
    for given in ([f"resume={run}", *again], [*words, f"output={run}", "resume=auto", *again], [f"resume={run}", "trainer=auto", *again]):
        assert cli.run("train", given) == 0
        assert "training in 32-true: one process" in capfd.readouterr().out
    assert cli.run("train", [f"resume={run}", "trainer=auto", "trainer.precision=bf16-mixed"]) == 2
    assert "trainer.precision: '32-true' in the run, 'bf16-mixed' now" in capfd.readouterr().err
