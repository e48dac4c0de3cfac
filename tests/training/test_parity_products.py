"""Every mesh and product of meshes trains a denoising network as one process does: packs that differ, accumulated, with images among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sora.tokens import Batch
from sora.training import ema, ranks, schedules, trainers
from sora.training.ema import Average
from sora.training.mesh import seat
from sora.training.module import TrainingModule
from tests.training.groups import in_ranks
from tests.training.stand_ins import ADAMW, MUON, Integers
from tests.training.test_parity import CPU, Recorder, launched
from tests.training.tokens import PACKS, packs_of, task

STEPS = 3
STEADY = partial(ADAMW, eps=1e-4)  # what is rounding alone moves no weight by its sign
# replicate, shard, context, sharded
MESHES: dict[int, dict[str, tuple[int, int, int, bool]]] = {
    2: {"ddp": (2, 1, 1, False), "fsdp": (1, 2, 1, True), "cp": (1, 1, 2, False), "cp, sharded": (1, 1, 2, True)},
    4: {
        "hsdp": (2, 2, 1, True),
        "cp": (1, 1, 4, False),
        "cp x ddp": (2, 1, 2, False),
        "cp x fsdp": (1, 2, 2, True),
        "cp x ddp, sharded": (2, 1, 2, True),
    },
}


class Shares(Dataset):
    """The packs of one reader, by the plan's rule."""

    def __init__(self, readers: int, reader: int) -> None:
        self.readers, self.reader = readers, reader

    def __getitem__(self, step: int) -> list[Batch]:
        return packs_of(step)[self.reader :: self.readers]


def mesh(shape: tuple[int, int, int, bool]) -> Callable[..., Any]:
    replicate, shard, context, sharded = shape
    named = {"replicate": replicate, "shard": shard, "context": context, "tensor": 1, "sharded": sharded}
    return partial(trainers.mesh, devices=replicate * shard * context, **named, **CPU)


def trained(trainer: Callable[..., Any], optimizer: Callable) -> tuple[list, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reports of a few steps, the gradients of the first, weights and averages after the last."""
    module = TrainingModule(
        task=task(depth=3),
        optimizer=optimizer,
        schedule=partial(schedules.cosine, steps=STEPS, warmup=1, floor=0.1),
        average=Average(partial(ema.constant, decay=0.9, warmup=10)),
        clip=0.05,  # less than any norm
        guard=Guard(patience=2, most=9, spike=None, history=8, returns=0),
    )
    first: dict[str, torch.Tensor] = {}
    plain = module._update

    def update(rate: float, norm: float) -> None:
        if not first:
            module.begin()
            first.update({name: ranks.whole(value.grad).clone() for name, value in module.trained().items()})
        plain(rate, norm)

    module._update = update
    recorder = Recorder()
    run = trainer(callbacks=[recorder])
    here = seat(run)
    run.fit(module, DataLoader(Shares(here.readers, here.reader), batch_size=None, sampler=Integers(0, STEPS)))
    weights = {**module.trained(), **{f"average of {name}": value for name, value in module.average.shadow.items()}}
    return recorder.rows, first, {name: ranks.whole(value.detach()).clone() for name, value in weights.items()}


@pytest.fixture(scope="module")
def alone():
    single = partial(trainers.single, **{key: value for key, value in CPU.items() if key != "nodes"})
    return {"adamw": trained(single, STEADY), "muon": trained(single, MUON)}


def compare(found, wanted, name: str) -> None:
    for row, same in zip(found[0], wanted[0], strict=True):
        assert row[0] == pytest.approx(same[0], rel=1e-6) and row[1] == pytest.approx(same[1], rel=1e-6), (name, row, same)
        assert row[2:] == same[2:], name  # samples, tokens
    most = max(value.norm() for value in wanted[1].values())
    for key, value in wanted[1].items():
        assert (found[1][key] - value).norm() <= 1e-5 * max(value.norm(), 1e-3 * most), (name, key)
    for key, value in wanted[2].items():
        assert (found[2][key] - value).norm() <= 1e-4 * max(value.norm(), 1e-2), (name, key)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_mesh_trains_as_one_process_does(tmp_path, alone, count):
    assert PACKS % count == 0

    def work(rank: int) -> None:
        launched(rank, count)
        for name, shape in MESHES[count].items():
            compare(trained(mesh(shape), STEADY), alone["adamw"], name)

    in_ranks(count, tmp_path, work)


@pytest.mark.slow
def test_muon_sees_whole_matrices_on_every_mesh(tmp_path, alone):
    def work(rank: int) -> None:
        launched(rank, 4)
        for name in ("hsdp", "cp x ddp", "cp x fsdp"):
            compare(trained(mesh(MESHES[4][name]), MUON), alone["muon"], name)

    in_ranks(4, tmp_path, work)
