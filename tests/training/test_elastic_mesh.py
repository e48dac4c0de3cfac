"""A run that is gone on with on other meshes: one process, context ranks, shards of context ranks, one process; and the losses stay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sora import cli
from sora.runs.jsonl import read
from sora.training.diffusion_task import DiffusionTask
from tests.training.groups import in_ranks
from tests.training.test_elastic_run import made as made  # the fixture
from tests.training.test_elastic_run import words
from tests.training.test_parity import launched

# ranks, until which step, and the words for the trainer
PARTS = (
    (1, 2, ["trainer=cpu"]),
    (2, 3, ["trainer=cp", "trainer.context=2"]),
    (4, 4, ["trainer=fsdp", "trainer.context=2"]),
    (1, 5, ["trainer=cpu"]),
)
ON_CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.threads=1", "trainer.deterministic=true"]


def go_on(folder: Path, arguments: list[str], *, count: int, steps: int | None) -> None:
    """Train on so many ranks; the first is told to stop in its step number `steps`."""
    notes = folder.parent / f"{folder.name}-{len(list(folder.parent.iterdir()))}"
    notes.mkdir()

    def work(rank: int) -> None:
        launched(rank, count)
        rank_zero_only.rank = rank  # a fork knows what was read when it was imported
        plain, seen = DiffusionTask.prepare, []

        def noted(self, batch, device):
            seen.append(None)
            if rank == 0 and len(seen) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, batch, device)

        DiffusionTask.prepare = noted  # in this process alone
        code = cli.run("train", arguments)
        assert code == (0 if steps is None else 128 + signal.SIGTERM), code

    in_ranks(count, notes, work)


@pytest.mark.slow
@pytest.mark.long
def test_meshes_may_change_in_the_middle_of_a_run(made, tmp_path):
    """With both optimisers: Muon's steps want whole matrices."""
    chosen = [*words(made), "optimizer=muon", "steps=5"]
    go_on(tmp_path / "alone", [*chosen, f"output={tmp_path}/alone"], count=1, steps=None)
    run, before = tmp_path / "moved", 0
    for count, until, trainer in PARTS:
        arguments = [*chosen, f"output={run}"] if before == 0 else [f"resume={run}"]
        many = [f"trainer.devices={count}", "trainer.nodes=1"] if count > 1 else []
        go_on(run, [*arguments, *trainer, *ON_CPU, *many], count=count, steps=until - before if until < 5 else None)
        before = until
        assert [row["step"] for row in read(run / "metrics.jsonl")] == list(range(1, until + 1))
    for row, wanted in zip(read(run / "metrics.jsonl"), read(tmp_path / "alone" / "metrics.jsonl"), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-6) and row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
        assert (row["samples"], row["tokens"]) == (wanted["samples"], wanted["tokens"])
    lost = [json.loads(line)["key"] for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert len(lost) == 1  # once, although ranks of a context group all meet it
