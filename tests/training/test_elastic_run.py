"""`sora train` itself on 1, 2 and 4 ranks, cut and gone on with on others: the same clips at the same steps, and a bad one among them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sora import cli
from sora.data.index.index import Index
from sora.data.index.latents import LatentIndex
from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system.draws import sample_id
from sora.training.diffusion_task import DiffusionTask
from sora.vae.artefact import artefact_hash
from tests.data.making import flip
from tests.faults import full
from tests.trained import vae_artefact, world_dataset
from tests.training.groups import in_ranks
from tests.training.test_parity import launched

STEPS, PACKS, BAD = 6, 4, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Eight clips to train on, of which the latents of one have changed after they were encoded."""
    folder = tmp_path_factory.mktemp("elastic")
    world, vae = world_dataset(folder / "world", clips=16), vae_artefact(folder / "vae")
    assert cli.run("encode", [f"vae={vae}", f"data={world}", "text=byte", "threads=1"]) == 0
    index = Index.open(world, "train")
    member = LatentIndex(index, artefact_hash(vae)).member(BAD)
    flip(world / member.shard, member.offset + member.size // 2)
    return folder


def words(made: Path) -> list[str]:
    settings = [f"steps={STEPS}", "log_every=1", "trainer.threads=1", "data.max_bad_share=0.2", f"plan.packs={PACKS}", "plan.window=2"]
    return ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", "plan.budget=120", *settings]


def trained(made: Path, folder: Path, arguments: list[str], *, count: int, cut: int | None = None) -> dict[int, list]:
    """What every pack of every step held, by step; folder: of the run. cut: the step in which the first rank is told to stop."""
    notes = folder.parent / f"{folder.name}-{count}-{cut}"
    notes.mkdir()
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={count}", "trainer.precision=32-true", "trainer.threads=1"]

    def work(rank: int) -> None:
        launched(rank, count)
        rank_zero_only.rank = rank  # a fork knows what was read when it was imported
        plain, seen = DiffusionTask.prepare, []

        def noted(self, batch, device):
            seen.append([list(zip(pack.sample_ids, pack.epochs, strict=True)) for pack in batch])
            if rank == 0 and len(seen) == cut:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, batch, device)

        DiffusionTask.prepare = noted  # in this process alone
        code = cli.run("train", [*arguments, *(many if count > 1 else [])])
        assert code == (0 if cut is None else 128 + signal.SIGTERM), code
        (notes / f"{rank}.json").write_text(json.dumps(seen))

    in_ranks(count, notes, work)
    dealt = [json.loads((notes / f"{rank}.json").read_text()) for rank in range(count)]
    first = STEPS - len(dealt[0]) if cut is None else 0
    return {
        first + step: [share[step][place // count] for place in range(PACKS) for share in [dealt[place % count]]]
        for step in range(len(dealt[0]))
    }


@pytest.mark.long
@pytest.mark.slow
def test_two_ranks_fall_back_together_when_a_piece_of_the_newest_checkpoint_is_damaged(made, tmp_path, capfd):
    """Only one of them reads that piece; both go on from the one before, and make the same step again."""
    folder = tmp_path / "run"
    before = trained(made, folder, [*words(made), "checkpoint.every=2", f"output={folder}"], count=2, cut=5)
    losses = [row["loss"] for row in read(folder / "metrics.jsonl")]
    assert [checkpoint.step_of(path) for path in checkpoint.listed(folder / "checkpoints")][-2:] == [4, 5] and len(losses) == 5
    piece = folder / "checkpoints" / "step-00000005" / "model-00001-of-00002.safetensors"
    flip(piece, piece.stat().st_size - 2)  # among the numbers: the file opens
    capfd.readouterr()
    after = trained(made, folder, [f"resume={folder}"], count=2)
    told = [line for line in capfd.readouterr().out.splitlines() if "passed over" in line]
    assert len(set(told)) == 1 and "step-00000005/model-00001-of-00002.safetensors is damaged" in told[0]  # by the rank that read it
    assert set(after) == {4, 5} and after[4] == before[4]
    rows = read(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and [row["loss"] for row in rows][:5] == losses
    (account,) = read(folder / "goodput.jsonl")[1:]
    assert (account["first"], account["last"]) == (4, STEPS) and account["wasted"] > 0


@pytest.mark.slow
def test_a_save_that_one_ranks_disk_refuses_is_no_ranks_and_is_told_once(made, tmp_path, capfd, monkeypatch):
    """The disk of the second rank is full at the first save; the run goes on, and ends as it would have."""
    real, calls = checkpoint.write_tensors, []

    def refusing(path, tensors):
        if "-00001-of-" in path.name and "00000002" in str(path):
            full()
        calls.append(path)
        return real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", refusing)
    saves = ["checkpoint.every=2", "checkpoint.keep=9"]
    trained(made, tmp_path / "run", [*words(made), *saves, f"output={tmp_path / 'run'}"], count=2)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path / "run" / "checkpoints")] == [4, 6]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    (event,) = [row for row in read(tmp_path / "run" / "events.jsonl") if row["event"] == "save failed"]
    assert (event["step"], event["reason"], event["ranks"]) == (2, "the disk is full", [1])
    assert "the checkpoint of step 2 could not be written: rank 1 could not write. Training goes on" in capfd.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["saved"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("differing", [pytest.param("the code", marks=pytest.mark.long), "max_grad_norm="])
def test_ranks_that_were_started_differently_do_not_train(made, tmp_path, differing, monkeypatch, capfd):
    from sora.runs import run

    def work(rank: int) -> None:
        launched(rank, 2)
        rank_zero_only.rank = rank
        many = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "trainer.threads=1"]
        other = rank == 1 and differing == "max_grad_norm="
        if rank == 1 and differing == "the code":
            monkeypatch.setattr(run, "code_version", lambda: {"commit": "another"})
        assert cli.run("train", [*words(made), *many, f"output={tmp_path / 'run'}", *(["max_grad_norm=2.0"] if other else [])]) == 2

    in_ranks(2, tmp_path, work)
    told = capfd.readouterr().err
    assert told.count(f"other than on rank 0 are {differing} on rank 1. Start all of them alike") == 2  # every rank says so
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
@pytest.mark.slow
def test_the_same_clips_at_the_same_steps_on_any_ranks(made, tmp_path):
    runs, held = {}, {}
    for count in (1, 2, 4):
        runs[count] = tmp_path / f"on-{count}"
        held[count] = trained(made, runs[count], [*words(made), f"output={runs[count]}"], count=count)
    runs["cut"] = tmp_path / "cut"
    held["cut"] = trained(made, runs["cut"], [*words(made), f"output={runs['cut']}"], count=4, cut=3)
    assert set(held["cut"]) == {0, 1, 2}
    held["cut"] |= trained(made, runs["cut"], [f"resume={runs['cut']}"], count=2)
    keys = {index.key(row) for index in [Index.open(made / "world", "train")] for row in range(len(index))}
    lost = Index.open(made / "world", "train").key(BAD)
    for name, steps in held.items():
        assert steps == held[1], name
        rows = read(runs[name] / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        for row, wanted in zip(rows, read(runs[1] / "metrics.jsonl"), strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-6) and row["samples"] == wanted["samples"]
        listed = [json.loads(line)["key"] for line in (runs[name] / "quarantine.jsonl").read_text().splitlines()]
        assert listed == [lost], name
    each = [tuple(clip) for step in held[1].values() for pack in step for clip in pack]
    assert max(epoch for _, epoch in each) > 1
    for epoch in (0, 1):
        assert {sample for sample, of in each if of == epoch} == {sample_id(key) for key in keys - {lost}}
