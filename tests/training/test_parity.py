"""Every way of training on several ranks equals one process: losses, gradient norms, first gradients; and mutants do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from sora.parallel.mesh import MeshStrategy, seat
from sora.system import distributed as ranks
from sora.training import module as modules
from sora.training import trainers
from sora.training.callbacks.clock import StepTimer
from sora.training.logging.goodput import Phases
from tests.training.groups import in_ranks
from tests.training.stand_ins import ADAMW, Integers, Pack, Steps, module_of

STEPS, PACKS = 5, 4
CPU: dict[str, Any] = {"accelerator": "cpu", "nodes": 1, "precision": "32-true", "threads": 1, "deterministic": True}
MESH = {**CPU, "context": 1, "tensor": 1}


class Shares(Dataset):
    """A rank's packs of each step, by the plan's rule: in turn."""

    def __init__(self, *, rank: int, ranks: int) -> None:
        self.steps, self.rank, self.ranks = Steps(packs=PACKS), rank, ranks

    def __getitem__(self, step: int) -> list[Pack]:
        return self.steps[step][self.rank :: self.ranks]


class Recorder(StepTimer):
    """Keeps what each step reported."""

    def __init__(self) -> None:
        super().__init__(Phases(), None)
        self.rows: list[tuple[float, float, int, int]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        pl_module.begin()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        report = pl_module.report
        self.rows.append((report.loss, report.grad_norm, report.samples, report.tokens))


def trained(trainer: Callable[..., Any], *, rank: int, count: int) -> tuple[list, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reports of a few steps, the gradients of the first and the weights after the last."""
    network = module_of(steps=STEPS, optimizer=partial(ADAMW), seed=3)
    for part in network.modules():
        part.eval()  # dropout draws from each rank's own stream
    first: dict[str, torch.Tensor] = {}
    plain = network._update

    def update(rate: float, norm: float) -> None:
        if not first:
            first.update({name: ranks.whole(value.grad).clone() for name, value in network.trained().items()})
        plain(rate, norm)

    network._update = update
    recorder = Recorder()
    loader = torch.utils.data.DataLoader(Shares(rank=rank, ranks=count), batch_size=None, sampler=Integers(0, STEPS))
    run = trainer(callbacks=[recorder])
    run.fit(network, loader)
    return recorder.rows, first, {name: ranks.whole(value.detach()).clone() for name, value in network.trained().items()}


def launched(rank: int, count: int) -> None:
    """What torchrun would have said to this process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), GROUP_RANK="0")
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")


def modes(count: int) -> dict[str, Callable[..., Any]]:
    found = {
        "ddp": partial(trainers.mesh_trainer, devices=count, replicate=None, shard=1, sharded=False, **MESH),
        "ddp while it computes": partial(
            trainers.mesh_trainer, devices=count, replicate=None, shard=1, sharded=False, **{**MESH, "deterministic": False}
        ),
        "fsdp": partial(trainers.mesh_trainer, devices=count, replicate=1, shard=None, sharded=True, **MESH),
    }
    return found | (
        {"hsdp": partial(trainers.mesh_trainer, devices=count, replicate=2, shard=2, sharded=True, **MESH)} if count == 4 else {}
    )


@pytest.fixture(scope="module")
def alone():
    return trained(partial(trainers.single_trainer, **{key: value for key, value in CPU.items() if key != "nodes"}), rank=0, count=1)


def apart(found, wanted) -> tuple[float, float, float]:
    """The largest relative differences of losses, gradient norms and first gradients."""
    losses = max(abs(a[0] - b[0]) / abs(b[0]) for a, b in zip(found[0], wanted[0], strict=True))
    norms = max(abs(a[1] - b[1]) / abs(b[1]) for a, b in zip(found[0], wanted[0], strict=True))
    gradients = max(((found[1][name] - value).norm() / value.norm()).item() for name, value in wanted[1].items())
    return losses, norms, gradients


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_mode_equals_one_process(tmp_path, alone, count):
    def work(rank: int) -> None:
        launched(rank, count)
        for name, trainer in modes(count).items():
            found = trained(trainer, rank=rank, count=count)
            losses, norms, gradients = apart(found, alone)
            assert max(losses, norms) <= 1e-6, (name, losses, norms)
            assert gradients <= 1e-5, (name, gradients)
            assert [row[2:] for row in found[0]] == [row[2:] for row in alone[0]], name
            if name == "ddp":  # sums in the order of one process: every bit
                assert found[0] == alone[0]
                assert all(torch.equal(found[part][key], value) for part in (1, 2) for key, value in alone[part].items())

    in_ranks(count, tmp_path, work)


def no_share(monkeypatch) -> None:
    """Each rank divides by its own count, not everybody's."""
    monkeypatch.setattr(modules.ranks, "summed", lambda values: values.clone())


def no_average(monkeypatch) -> None:
    """The factor for the strategy's average over ranks is missing."""
    monkeypatch.setattr(modules, "seat", lambda trainer: replace(seat(trainer), averaged=1))


def no_sync(monkeypatch) -> None:
    """No pack's gradients are exchanged, the last one's neither."""
    plain = modules.TrainingModule._quiet
    monkeypatch.setattr(modules.TrainingModule, "_quiet", lambda self, *, last: plain(self, last=False))


def no_sum(monkeypatch) -> None:
    """Ranks that sum gradients in order do not do it."""
    monkeypatch.setattr(MeshStrategy, "sum_up", lambda self, parameters: None)


def average_twice(monkeypatch) -> None:
    """Gradients that are summed in order are divided by the number of ranks, too."""
    monkeypatch.setattr(modules, "ordered", lambda trainer: False)


def same_data(monkeypatch) -> None:
    """Every rank trains on the first one's packs."""
    monkeypatch.setattr(Shares, "__getitem__", lambda self, step: self.steps[step][:: self.ranks])


AVERAGING = "ddp while it computes"


@pytest.mark.parametrize(
    ("mutant", "mode"),
    [
        (no_share, "ddp"),
        (no_share, AVERAGING),
        (no_average, AVERAGING),
        (no_sync, AVERAGING),
        (no_sum, "ddp"),
        (average_twice, "ddp"),
        (same_data, "ddp"),
    ],
)
def test_mutants_are_caught(tmp_path, alone, monkeypatch, mutant, mode):
    def work(rank: int) -> None:
        launched(rank, 2)
        mutant(monkeypatch)
        losses, norms, gradients = apart(trained(modes(2)[mode], rank=rank, count=2), alone)
        assert losses > 1e-4 or norms > 1e-4 or gradients > 1e-3

    in_ranks(2, tmp_path, work)


def test_bf16_weights_with_fp32_reduction_stay_close(tmp_path, alone):
    def work(rank: int) -> None:
        launched(rank, 2)
        trainer = partial(trainers.mesh_trainer, devices=2, replicate=1, shard=2, sharded=True, **{**MESH, "precision": "bf16-mixed"})
        losses, _, gradients = apart(trained(trainer, rank=rank, count=2), alone)
        assert losses < 2e-2 and gradients < 5e-2
        assert gradients > 1e-5  # it is bf16

    in_ranks(2, tmp_path, work)


def test_a_mesh_that_leaves_a_rank_out_is_refused(tmp_path):
    def work(rank: int) -> None:
        launched(rank, 2)
        with pytest.raises(ValueError, match="context 1 x tensor 1 has 1 rank, but 2 are trainer.devices=2 x trainer.nodes=1"):
            trainers.mesh_trainer(devices=2, replicate=1, shard=1, sharded=False, callbacks=[], **MESH)
        with pytest.raises(ValueError, match="replicate 1 x shard 1 x context 3 x tensor 1 has 3 ranks, but 2"):
            trainers.mesh_trainer(devices=2, replicate=None, shard=None, sharded=True, callbacks=[], **{**MESH, "context": 3})
        with pytest.raises(ValueError, match="trainer.context=0"):
            trainers.mesh_trainer(devices=2, replicate=2, shard=1, sharded=False, callbacks=[], **{**MESH, "context": 0})
        with pytest.raises(ValueError, match="trainer.shard=2 ranks hold one copy of the weights only with trainer.sharded=true"):
            trainers.mesh_trainer(devices=2, replicate=1, shard=None, sharded=False, callbacks=[], **MESH)
        with pytest.raises(ValueError, match="replicate 1 x shard 1 x context 1 x tensor 1 has 1 rank, but 2 were started"):
            trained(
                partial(trainers.mesh_trainer, devices=1, replicate=1, shard=1, sharded=False, **MESH), rank=rank, count=2
            )  # of a job of two

    in_ranks(2, tmp_path, work)
