"""Every mesh and product of meshes trains a network as one process does: packs that differ, accumulated, with images among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sora.config.build import build
from sora.parallel.mesh import MeshStrategy, Seat, Sizes, seat
from sora.system import distributed as ranks
from sora.tokens import Batch
from sora.training import module as modules
from sora.training import trainers
from sora.training.guard import Guard
from sora.training.module import TrainingModule
from sora.training.optim import ema, schedules
from sora.training.optim.ema import Average
from sora.training.vae_task import VaeTask
from sora.vae.losses import VaeObjective
from tests.trained import option
from tests.training.groups import in_ranks
from tests.training.stand_ins import ADAMW, MUON, Integers
from tests.training.test_parity import CPU, Recorder, launched
from tests.training.tokens import PACKS, packs_of, task

pytestmark = pytest.mark.slow

STEPS = 2
STEADY = partial(ADAMW, eps=1e-4)  # what is rounding alone moves no weight by its sign
# replicate, shard, context, sharded
MESHES: dict[int, dict[str, tuple[int, int, int, bool]]] = {
    2: {"ddp": (2, 1, 1, False), "fsdp": (1, 2, 1, True), "cp": (1, 1, 2, False), "cp, sharded": (1, 1, 2, True)},
    4: {
        "hsdp": (2, 2, 1, True),
        "cp": (1, 1, 4, False),
        "cp x ddp": (2, 1, 2, False),
        "cp x fsdp": (1, 2, 2, True),
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
    return partial(trainers.mesh_trainer, devices=replicate * shard * context, **named, **CPU)


SINGLE = partial(trainers.single_trainer, **{key: value for key, value in CPU.items() if key != "nodes"})


def trained(
    trainer: Callable[..., Any], optimizer: Callable, *, made: Callable[[], Any] = task, shares: Any = Shares
) -> tuple[list, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reports of a few steps, the gradients of the first, weights and averages after the last."""
    module = TrainingModule(
        task=made(),
        optimizer=optimizer,
        schedule=partial(schedules.cosine_schedule, steps=STEPS, warmup=1, floor=0.1),
        average=Average(partial(ema.constant_decay, decay=0.9, warmup=10)),
        max_grad_norm=0.05,  # less than any norm
        guard=Guard(patience=2, most=9, spike=None, history=8, max_rollbacks=0),
    )
    first: dict[str, torch.Tensor] = {}
    plain = module._update

    def update(rate: float, norm: float) -> None:
        if not first:
            module.begin()
            first.update({name: ranks.whole(value.grad).clone() for name, value in module.trained().items() if value.grad is not None})
        plain(rate, norm)

    module._update = update
    recorder = Recorder()
    run = trainer(callbacks=[recorder])
    here = seat(run)
    run.fit(module, DataLoader(shares(here.readers, here.reader), batch_size=None, sampler=Integers(0, STEPS)))
    weights = {**module.trained(), **{f"average of {name}": value for name, value in module.average.shadow.items()}}
    return recorder.rows, first, {name: ranks.whole(value.detach()).clone() for name, value in weights.items()}


@pytest.fixture(scope="module")
def alone():
    return trained(SINGLE, STEADY)


def differing(found, wanted) -> list[str]:
    """Where two of `trained` are apart: rows of reports (loss, norm, samples, tokens), gradients of the first step, weights of the last."""
    apart = [
        f"{row} instead of {same}"
        for row, same in zip(found[0], wanted[0], strict=True)
        if row[:2] != pytest.approx(same[:2], rel=1e-6) or row[2:] != same[2:]
    ]
    most = max(value.norm() for value in wanted[1].values())
    near = {key: (found[1][key] - value).norm() <= 1e-5 * max(value.norm(), 1e-3 * most) for key, value in wanted[1].items()}
    apart += [f"the first gradient of {key}" for key, close in near.items() if not close]
    near = {key: (found[2][key] - value).norm() <= 1e-4 * max(value.norm(), 1e-2) for key, value in wanted[2].items()}
    return [*apart, *(key for key, close in near.items() if not close)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_mesh_trains_as_one_process_does(tmp_path, alone, count):
    assert PACKS % count == 0

    def work(rank: int) -> None:
        launched(rank, count)
        for name, shape in MESHES[count].items():
            assert not differing(trained(mesh(shape), STEADY), alone), name

    in_ranks(count, tmp_path, work)


def wrong_average(monkeypatch) -> None:
    """Gradients are averaged over more ranks than their factor says."""
    monkeypatch.setattr(modules, "seat", lambda trainer: replace(seat(trainer), averaged=1))


def everybody_tells(monkeypatch) -> None:
    """Each rank of a context group counts the whole pack's clips."""
    monkeypatch.setattr(modules, "seat", lambda trainer: replace(seat(trainer), first_of_packs=True))


def data_of_its_own(monkeypatch) -> None:
    """The ranks of a context group read different packs."""
    plain = seat
    monkeypatch.setitem(globals(), "seat", lambda trainer: replace(plain(trainer), readers=2, reader=trainer.global_rank))


def gradients_of_one(monkeypatch) -> None:
    """Gradients are not exchanged over the context group."""
    monkeypatch.setattr(MeshStrategy, "run", lambda self, task, prepared: task(prepared))


@pytest.mark.parametrize("mutant", [wrong_average, everybody_tells, data_of_its_own, gradients_of_one])
def test_mutants_are_caught(tmp_path, alone, monkeypatch, mutant):
    def work(rank: int) -> None:
        launched(rank, 2)
        mutant(monkeypatch)
        assert differing(trained(mesh(MESHES[2]["cp"]), STEADY), alone)

    in_ranks(2, tmp_path, work)


class Frames(NamedTuple):
    """Clips of one shape."""

    frames: torch.Tensor
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]


class FrameShares(Dataset):
    """Four batches a step, of unequal sizes."""

    def __init__(self, readers: int, reader: int) -> None:
        self.readers, self.reader = readers, reader

    def __getitem__(self, step: int) -> list[Frames]:
        sizes = {number: 1 + (step + number) % 2 for number in range(4)}
        draw = {number: torch.Generator().manual_seed(10 * step + number) for number in sizes}
        made = [
            Frames(
                torch.randint(0, 256, (size, 5, 8, 8, 3), dtype=torch.uint8, generator=draw[number]),
                tuple(range(100 * step + 10 * number, 100 * step + 10 * number + size)),
                (0,) * size,
            )
            for number, size in sizes.items()
        ]
        return made[self.reader :: self.readers]


def vae_task() -> VaeTask:
    torch.manual_seed(2)
    return VaeTask(vae=build(option("vae", "toy")), objective=VaeObjective(l1=1.0, l2=1.0, edge=0.1, kl=1e-3), seed=3)


@pytest.mark.slow
def test_a_vae_trains_under_the_strategy_too_and_has_no_context(tmp_path):
    wanted = trained(SINGLE, STEADY, made=vae_task, shares=FrameShares)

    def work(rank: int) -> None:
        launched(rank, 2)
        for name in ("ddp", "fsdp"):
            assert not differing(trained(mesh(MESHES[2][name]), STEADY, made=vae_task, shares=FrameShares), wanted), name
        with pytest.raises(ValueError, match="VaeTask trains on none; set trainer.context=1"):
            trained(mesh(MESHES[2]["cp"]), STEADY, made=vae_task, shares=FrameShares)

    in_ranks(2, tmp_path, work)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 1, 1), (2, 1, 2, 1), (2, 2, 3, 2), (1, 1, 4, 2)])
def test_every_rank_has_a_seat_and_every_pack_one_group_of_ranks(shape):
    sizes = Sizes(*shape)
    seats = [Seat.of(sizes, rank) for rank in range(sizes.ranks)]
    places = list(itertools.product(*map(range, shape)))  # as init_device_mesh numbers them
    for here, (replicate, shard, context, tensor) in zip(seats, places, strict=True):
        assert (here.readers, here.averaged) == (sizes.replicate * sizes.shard, sizes.ranks // sizes.tensor)
        assert here.reader == replicate * sizes.shard + shard
        assert here.first_of_tokens == (tensor == 0) and here.first_of_packs == (context == tensor == 0)


@pytest.mark.slow
def test_muon_sees_whole_matrices_on_every_mesh(tmp_path):
    wanted = trained(SINGLE, MUON)

    def work(rank: int) -> None:
        launched(rank, 4)
        for name in ("hsdp", "cp x fsdp"):
            assert not differing(trained(mesh(MESHES[4][name]), MUON), wanted), name

    in_ranks(4, tmp_path, work)
