"""A tiny model, task and dataset that train in milliseconds, through the same doors as the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sora.runs.checkpoint import TrainingState
from sora.runs.run import Run, create
from sora.system import draws
from sora.training import trainers
from sora.training.callbacks.checkpoints import Checkpoints
from sora.training.callbacks.journal import Journal
from sora.training.faults.signals import StopFlag
from sora.training.guard import Guard, Suspects
from sora.training.logging.goodput import Phases
from sora.training.logging.tracker import NoTracker, Tracker
from sora.training.module import Loss, TrainingModule
from sora.training.optim import ema, optimizers, schedules
from sora.training.optim.ema import Average, Averaging


@dataclass(frozen=True)
class Pack:
    inputs: Tensor
    sample_ids: tuple[int, ...]

    @property
    def count(self) -> Tensor:
        return torch.tensor(float(self.inputs.shape[0]))

    @property
    def samples(self) -> int:
        return len(self.sample_ids)

    @property
    def tokens(self) -> int:
        return 3 * self.inputs.shape[0]

    @property
    def flops(self) -> float:
        return 1e3 * self.inputs.shape[0]


class Steps(Dataset):
    """`packs` packs a step, of unequal sizes; every value follows from (seed, step)."""

    def __init__(self, packs: int = 2, poison: dict[int, float] | None = None) -> None:
        self.packs, self.poison = packs, poison or {}

    def __getitem__(self, step: int) -> list[Pack]:
        found = []
        for pack in range(self.packs):
            size = 2 + (step + pack) % 3
            inputs = draws.normal("inputs", (size, 6), seed=0, epoch=pack, sample=step)
            if step in self.poison and pack == self.packs - 1:
                inputs[-1] = self.poison[step]
            found.append(Pack(inputs, tuple(range(10 * step + 5 * pack, 10 * step + 5 * pack + size))))
        return found


class Integers:
    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last - self.first


class Network(nn.Module):
    """Has blocks of matrices (for Muon), a bias, a buffer, and dropout (so that the global random state matters)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.leave = nn.Linear(width, 6)
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + nn.functional.dropout(torch.tanh(block(x)), 0.1, self.training)
        return self.leave(x) * self.scale


class ToyTask(nn.Module):
    """Learn the negative of the input."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.network = Network(width)

    def prepare(self, batch: Sequence[Pack], device: torch.device) -> Sequence[Pack]:
        return batch

    def forward(self, pack: Pack) -> Loss:
        each = (self.network(pack.inputs) + pack.inputs).square().mean(1)
        halves = torch.stack([each[:1].sum(), each[1:].sum()])
        counts = torch.tensor([1.0, len(each) - 1.0])
        return Loss(total=each.sum(), parts={"halves": (halves, counts)}, by_sample=lambda: each)


ADAMW = partial(optimizers.adamw, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
MUON = partial(
    optimizers.muon,
    lr=1e-2,
    momentum=0.9,
    weight_decay=0.0,
    iterations=5,
    within="blocks.",
    splits={},
    other_lr=1e-2,
    betas=(0.9, 0.95),
    eps=1e-8,
)


def module_of(
    *,
    steps: int,
    seed: int = 0,
    width: int = 8,
    optimizer=MUON,
    flag=lambda: False,
    patience: int = 5,
    averaged: bool = True,
    average: Averaging | None = None,
    **judged,
):
    torch.manual_seed(seed)
    return TrainingModule(
        task=ToyTask(width),
        optimizer=optimizer,
        schedule=partial(schedules.cosine_schedule, steps=steps, warmup=3, floor=0.1),
        average=average or Average(partial(ema.constant_decay, decay=0.9, warmup=10) if averaged else None),
        max_grad_norm=1.0,
        guard=Guard(**{"patience": patience, "most": 1000, "spike": None, "history": 128, "max_rollbacks": 0, **judged}),
        stop=flag,
    )


ALONE = partial(trainers.single_trainer, accelerator="cpu", precision="32-true", threads=1, deterministic=True)


def fit(
    folder: Path,
    *,
    until: int,
    total: int,
    resumed: TrainingState | None = None,
    dataset: Dataset | None = None,
    workers: int = 0,
    every: int = 1000,
    keep: int = 3,
    snapshots: int = 0,
    saves: int = 3,
    log_every: int = 1,
    stop_at: int | None = None,
    peak=None,
    tracker: Tracker | None = None,
    hold: Callable[[int, Sequence[int], str], object] | None = None,
    phases: Phases | None = None,
    also: Callable[[Run, Journal, Phases], Sequence[Callback]] = lambda run, journal, phases: (),
    trainer: Callable[..., Any] = ALONE,
    make: Callable[..., TrainingModule] = module_of,
    **settings,
) -> TrainingModule:
    """Train to step `until` of a run of `total` steps (as if the rest had been cut off), from `resumed`.

    trainer: for several ranks, whose run has been made and whose `dataset` gives each its share. make: the module, of `settings`.
    """
    run = Run(folder) if (folder / "run.json").exists() else create(folder, config="seed: 0\n", info={"kind": "vae"})
    first = resumed.step if resumed else 0
    flag = StopFlag()
    asked = {"step": first}

    def wants() -> bool:
        asked["step"] += 1
        return bool(flag) or asked["step"] == stop_at

    module = make(steps=total, flag=wants, **settings)
    phases = phases or Phases()
    told = {"every": log_every, "steps": total, "unit": "tokens", "tracker": tracker or NoTracker()}
    suspects = Suspects(hold or (lambda step, ids, reason: None), resumed.facts["suspects"] if resumed else ())
    journal = Journal(run, **told, resumed=resumed, phases=phases, suspects=suspects, peak=peak)
    kept = {"keep": keep, "keep_every": 0, "snapshots": snapshots, "patience": saves}
    rest = {**kept, "seed": 7, "flag": flag, "journal": journal, "phases": phases, "resumed": resumed}
    saver = Checkpoints(run, every=every, steps=total, **rest)
    loader = DataLoader(dataset or Steps(), batch_size=None, sampler=Integers(first, until), num_workers=workers)
    with flag:
        try:
            trainer(callbacks=[journal, saver, *also(run, journal, phases)]).fit(module, loader)
        finally:
            journal.close()
    return module
