"""Runs of several steps with tensor ranks, and their products with copies, shards and context ranks, equal one process: losses, gradient
norms, first gradients, weights and averages; and mutants do not. What one mesh has saved another goes on with.

In float64: in float32 the steps of AdamW make of the last bit of a small gradient a step of full length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sora.diffusion.objective import Objective
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.single import dual_then_single_block
from sora.runs import checkpoint
from sora.runs.checkpoint import Saving, TrainingState
from sora.runs.jsonl import read
from sora.system import distributed as ranks
from sora.tokens import Batch
from sora.training import activation_checkpointing as recompute
from sora.training import module, state, trainers
from sora.training.guard import Guard
from sora.training.module import TrainingModule
from sora.training.optim import ema, schedules
from sora.training.optim.ema import Average
from tests.training.groups import in_ranks
from tests.training.stand_ins import ADAMW, MUON, Integers
from tests.training.test_elastic_mesh import ON_CPU, go_on
from tests.training.test_elastic_run import made as made  # the fixture
from tests.training.test_elastic_run import words
from tests.training.test_parity import CPU, Recorder, launched
from tests.training.tokens import packs_of, task

STEPS = 3
SPLIT_MUON = partial(MUON, splits={"qkv": 3, "kv": 2})


class Mode(NamedTuple):
    """Ranks along each axis, and whether weights are in shards."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    sharded: bool = False

    @property
    def ranks(self) -> int:
        return self.replicate * self.shard * self.context * self.tensor

    def trainer(self) -> Callable[..., Any]:
        if self.ranks == 1:
            return partial(trainers.single_trainer, **{key: value for key, value in CPU.items() if key != "nodes"})
        return partial(trainers.mesh_trainer, devices=self.ranks, **self._asdict(), **CPU)


class Shares(Dataset):
    """The packs of a step that a reader has."""

    def __init__(self, mode: Mode, rank: int) -> None:
        self.reader, self.readers = rank // (mode.context * mode.tensor), mode.replicate * mode.shard

    def __getitem__(self, step: int) -> list[Batch]:
        return packs_of(step)[self.reader :: self.readers]


def double(_, inputs: tuple) -> tuple:
    """What the network is given in float64; the objective works in float32."""
    tokens, levels, text = inputs
    return tokens.with_patches(tokens.patches.double()), levels, replace(text, states=text.states.double())


class Trained(NamedTuple):
    """rows: loss, gradient norm, samples and tokens of each step. first: gradients."""

    rows: list[tuple[float, float, int, int]]
    first: dict[str, Tensor]
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]


class Resumed(Recorder):
    """Begins where another run has ended, and keeps what it was given to begin with."""

    def __init__(self, source: Path | None) -> None:
        super().__init__()
        self.source = source

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        if self.source is not None:
            state.restore(pl_module, checkpoint.load(self.source), source=self.source)


def trained(
    mode: Mode, rank: int, *, steps: range = range(STEPS), source: Path | None = None, into: Path | None = None, optimizer=ADAMW, **changes
) -> Trained:
    """A run of some steps. source: what it begins with. into: where it saves its end. changes: of the network."""
    learner = TrainingModule(
        task=task(**changes).double(),
        optimizer=partial(optimizer),
        schedule=partial(schedules.cosine_schedule, steps=STEPS, warmup=3, floor=0.1),
        average=Average(partial(ema.constant_decay, decay=0.9, warmup=10)),
        max_grad_norm=0.5,
        guard=Guard(patience=2, most=9, spike=None, history=8, max_rollbacks=0),
    )
    dit = learner.task.get_submodule("dit")
    dit.register_forward_pre_hook(double)
    recompute.recompute_all_but_attention(dit)
    first: dict[str, Tensor] = {}
    plain = learner._update

    def update(rate: float, norm: float) -> None:
        if not first:
            first.update({name: ranks.whole(value.grad).clone() for name, value in learner.trained().items() if value.grad is not None})
        plain(rate, norm)

    learner._update = update
    recorder = Resumed(source)
    loader = DataLoader(Shares(mode, rank), batch_size=None, sampler=Integers(steps.start, steps.stop))
    mode.trainer()(callbacks=[recorder]).fit(learner, loader)
    if into is not None:
        save(state.capture(learner, {}), into, rank=rank, count=mode.ranks)
    ends = (learner.trained(), learner.average.shadow)
    weights, averages = ({name: ranks.whole(value.detach()).clone() for name, value in found.items()} for found in ends)
    return Trained(recorder.rows, first, weights, averages)


@pytest.fixture(scope="module")
def alone() -> dict[Callable, Trained]:
    return {changes["block"]: trained(Mode(), 0, **changes) for changes in (LEAN, JOINT)}


def save(captured: TrainingState, into: Path, *, rank: int, count: int) -> None:
    saving = Saving(into, captured, rank=rank, ranks=count, copied=True)
    saving.write()
    ranks.together()
    if rank == 0:
        saving.commit(keep=9, keep_every=0)
    ranks.together()


def apart(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative difference; of what is rounding alone, relative to the largest of them."""
    assert mine.keys() == theirs.keys()
    most = max(float(value.norm()) for value in theirs.values())
    return max(float((mine[name] - value).norm() / max(float(value.norm()), 1e-3 * most)) for name, value in theirs.items())


def off(found: Trained, wanted: Trained) -> tuple[float, ...]:
    """Of losses and gradient norms, first gradients, weights, averages."""
    rows = max(abs(a / b - 1) for mine, theirs in zip(found.rows, wanted.rows, strict=True) for a, b in zip(mine, theirs, strict=True))
    return rows, *(apart(mine, theirs) for mine, theirs in zip(found[1:], wanted[1:], strict=True))


# A joint network with AdamW and a lean one with Muon: each meets every axis.
LEAN: dict[str, Any] = {"block": lean_block, "optimizer": SPLIT_MUON}
JOINT: dict[str, Any] = {"block": partial(dual_then_single_block, dual=1), "optimizer": ADAMW}
LONGER = ("tensor of four", "context and shards")  # of make test-long: their parts and other products are tested each time
RUNS = {
    "tensor of four": (Mode(tensor=4), LEAN),
    "copies": (Mode(replicate=2, tensor=2), JOINT),
    "shards": (Mode(shard=2, tensor=2, sharded=True), LEAN),
    "context": (Mode(context=2, tensor=2), JOINT),
    "context and shards": (Mode(context=2, tensor=2, sharded=True), LEAN),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "changes"), [pytest.param(*run, id=name, marks=pytest.mark.long if name in LONGER else ()) for name, run in RUNS.items()]
)
def test_a_run_equals_one_process(tmp_path, alone, mode, changes):
    def work(rank: int) -> None:
        launched(rank, mode.ranks)
        far = off(trained(mode, rank, **changes), alone[changes["block"]])
        assert max(far) <= 1e-6, far

    in_ranks(mode.ranks, tmp_path, work)


@pytest.mark.slow
def test_what_one_mesh_has_saved_another_goes_on_with(tmp_path, alone):
    trained(Mode(), 0, steps=range(1), into=tmp_path, **LEAN)

    def part(mode: Mode, number: int) -> Callable[[int], None]:
        def work(rank: int) -> None:
            launched(rank, mode.ranks)
            source = checkpoint.folder_of(tmp_path, number)
            trained(mode, rank, steps=range(number, number + 1), source=source, into=tmp_path, **LEAN)

        return work

    in_ranks(4, tmp_path, part(Mode(shard=2, tensor=2, sharded=True), 1))
    in_ranks(2, tmp_path, part(Mode(tensor=2), 2))
    whole, end = alone[lean_block], checkpoint.load(checkpoint.folder_of(tmp_path, STEPS))
    averages = dict(end.tensors["ema"])
    weights = {name: end.tensors["model"][name] for name in whole.weights}
    assert max(apart(weights, whole.weights), apart(averages, whole.averages)) <= 1e-6


def noise_of_its_own(patch) -> None:
    """Tensor ranks draw different noise for one pack."""
    plain = Objective.noise
    patch.setattr(Objective, "noise", lambda self, batch, *, seed: plain(self, batch, seed=seed + dist.get_rank()))


def readers_are_all_ranks(patch) -> None:
    """Gradients are taken to be averaged over tensor ranks, too."""
    plain = module.seat
    patch.setattr(module, "seat", lambda trainer: replace(plain(trainer), averaged=dist.get_world_size()))


def losses_of_all(patch) -> None:
    """Every tensor rank's loss counts."""
    plain = module.seat
    patch.setattr(module, "seat", lambda trainer: replace(plain(trainer), first_of_tokens=True))


@pytest.mark.slow
def test_mutants_are_caught(tmp_path, alone):
    wanted = alone[LEAN["block"]]

    def work(rank: int) -> None:
        launched(rank, 2)
        for mutant in (noise_of_its_own, readers_are_all_ranks, losses_of_all):
            with pytest.MonkeyPatch.context() as patch:
                mutant(patch)
                rows, first, *_ = off(trained(Mode(tensor=2), rank, steps=range(1), **LEAN), wanted._replace(rows=wanted.rows[:1]))
            assert max(rows, first) > 1e-3, mutant.__name__

    in_ranks(2, tmp_path, work)


@pytest.mark.long
@pytest.mark.slow
def test_sora_train_goes_on_with_tensor_ranks_and_without(made, tmp_path):
    chosen, run = [*words(made), *ON_CPU, "trainer.nodes=1"], tmp_path / "moved"
    alone = [word for word in chosen if word != "trainer.nodes=1"]
    go_on(tmp_path / "alone", [*alone, "trainer=cpu", f"output={tmp_path}/alone"], count=1, steps=None)
    go_on(run, [*chosen, "trainer=tp", "trainer.devices=2", f"output={run}"], count=2, steps=3)
    go_on(run, [f"resume={run}", *ON_CPU, "trainer=cpu"], count=1, steps=None)
    for row, wanted in zip(read(run / "metrics.jsonl"), read(tmp_path / "alone" / "metrics.jsonl"), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-6) and row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
        assert (row["samples"], row["tokens"]) == (wanted["samples"], wanted["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["trainer=fsdp", "trainer=tp"])
def test_halves_train_a_real_network_on_shares_as_float32_does(made, tmp_path, mode):
    """What GPUs are given; FSDP gathers the gains of norms as halves, and the tokens beside them are wider."""
    chosen = [*words(made), *ON_CPU]
    go_on(tmp_path / "alone", [*chosen, "trainer=cpu", f"output={tmp_path}/alone"], count=1, steps=None)
    many = [mode, "trainer.nodes=1", "trainer.devices=2", "trainer.precision=bf16-mixed"]
    go_on(tmp_path / "halves", [*chosen, *many, f"output={tmp_path}/halves"], count=2, steps=None)
    rows = list(zip(read(tmp_path / "halves/metrics.jsonl"), read(tmp_path / "alone/metrics.jsonl"), strict=True))
    assert all(row["loss"] == pytest.approx(wanted["loss"], rel=2e-3) for row, wanted in rows)
    assert all(row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-2) for row, wanted in rows)
    assert any(row["grad_norm"] != pytest.approx(wanted["grad_norm"], rel=1e-5) for row, wanted in rows)  # they are halves
