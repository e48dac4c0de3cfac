"""The training step: what it divides by, what it refuses, what it leaves alone."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import Dataset

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.training.module import Loss, fetched
from sora.training.optim import optimizers
from tests.training import tokens
from tests.training.stand_ins import ADAMW, Pack, Steps, ToyTask, fit

SGD_LIKE = partial(optimizers.adamw, lr=1e-3, betas=(0.0, 0.0), eps=1.0, weight_decay=0.0)


class Given(Dataset):
    def __init__(self, packs: list[Pack]) -> None:
        self.packs = packs

    def __getitem__(self, step: int) -> list[Pack]:
        return self.packs


class Plain(ToyTask):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)  # no dropout


def states(folder, step):
    return checkpoint.load(checkpoint.folder_of(folder / "checkpoints", step))


def equal(first, second, files=("model", "ema", "optimizer")) -> bool:
    return all(torch.equal(first.tensors[file][name], second.tensors[file][name]) for file in files for name in first.tensors[file])


@pytest.mark.slow
def test_how_clips_are_packed_does_not_change_the_step(tmp_path, monkeypatch):
    """The loss is divided by the step's count, not by each pack's: unequal packs weigh what they hold."""
    monkeypatch.setattr("tests.training.stand_ins.ToyTask", Plain)
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    cuts = {"one": [9], "even": [3, 3, 3], "ragged": [1, 6, 2]}
    found = {}
    for name, sizes in cuts.items():
        packs = [Pack(part, tuple(range(len(part)))) for part in inputs.split(sizes)]
        fit(tmp_path / name, until=4, total=4, every=1, dataset=Given(packs), optimizer=SGD_LIKE)
        found[name] = (states(tmp_path / name, 4).tensors["model"], read(tmp_path / name / "metrics.jsonl"))
    for name in ("even", "ragged"):
        for key, value in found["one"][0].items():
            torch.testing.assert_close(found[name][0][key], value, rtol=1e-5, atol=1e-7)
        for first, second in zip(found["one"][1], found[name][1], strict=True):
            assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
            assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e18], ids=["nan", "inf", "gradient only"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was_and_names_the_samples(tmp_path, value):
    folder = tmp_path / "run"
    fit(folder, until=8, total=8, every=1, keep=8, dataset=Steps(poison={5: value}))
    before, after = states(folder, 5), states(folder, 6)
    assert equal(before, after)
    assert not equal(after, states(folder, 7))
    assert (after.facts["counters"]["skipped"], after.samples) == (1, before.samples)
    (event,) = [row for row in read(folder / "events.jsonl") if row["event"] == "skipped"]
    assert event["step"] == 6
    packs = Steps()[5]
    everyone = [sample for pack in packs for sample in pack.sample_ids]
    # a finite loss with gradients that overflow cannot be traced to one sample
    assert event["sample_ids"] == (everyone if value == 1e18 else [packs[-1].sample_ids[-1]])
    assert [row["skipped"] for row in read(folder / "metrics.jsonl")] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert read(folder / "metrics.jsonl")[5]["loss"] is None


def test_many_bad_steps_in_a_row_stop_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    folder = tmp_path / "run"
    poison = dict.fromkeys(range(6, 20), float("nan"))
    with pytest.raises(ValueError, match="5 steps in a row up to step 11"):
        fit(folder, until=20, total=20, every=6, dataset=Steps(poison=poison))
    assert checkpoint.step_of(checkpoint.newest(folder / "checkpoints")) == 6
    assert len([row for row in read(folder / "events.jsonl") if row["event"] == "skipped"]) == 5


def test_bad_steps_that_are_not_in_a_row_do_not_stop_it(tmp_path):
    poison = {step: float("nan") for step in range(24) if step % 5}
    module = fit(tmp_path / "run", until=24, total=24, dataset=Steps(poison=poison))
    assert (module.counters.skipped, module.counters.updates) == (19, 5)


def test_the_graph_of_a_pack_is_gone_before_the_next_one_is_learned_from(tmp_path, monkeypatch):
    alive: list[tuple[int, int]] = []
    graphs: list[weakref.ref] = []

    class Hook:
        def __call__(self, *_: object) -> None:
            return None

    class Watched(Plain):
        def forward(self, prepared: Pack) -> Loss:
            alive.append((len(graphs), sum(graph() is not None for graph in graphs)))
            loss = super().forward(prepared)
            hook = Hook()  # which the graph holds, and nobody else; its nodes take no weak references
            loss.total.grad_fn.register_hook(hook)
            graphs.append(weakref.ref(hook))
            return loss

    monkeypatch.setattr("tests.training.stand_ins.ToyTask", Watched)
    packs = [Pack(part, tuple(range(len(part)))) for part in torch.randn(7, 6).split([1, 4, 2])]
    fit(tmp_path / "run", until=2, total=2, every=1, dataset=Given(packs))
    assert alive == [(before, 0) for before in range(6)]


def test_what_is_kept_of_a_loss_holds_no_graph():
    """Though it can tell the loss of each sample: held until the step's end, it would keep the activations of all its packs."""
    denoising = tokens.task()
    prepared = denoising.prepare(tokens.packs_of(0)[:1], torch.device("cpu"))[0]
    graphs: list[weakref.ref] = []

    class Hook:
        def __call__(self, *_: object) -> None:
            return None

    def learned() -> Loss:
        loss = denoising(prepared)
        hook = Hook()
        loss.total.grad_fn.next_functions[0][0].register_hook(hook)  # of the token losses, which were summed
        graphs.append(weakref.ref(hook))
        loss.total.backward()
        return replace(loss, total=loss.total.detach())

    loss = learned()
    assert graphs[0]() is None
    assert loss.by_sample().sum().item() == pytest.approx(loss.total.item(), rel=1e-5)


def test_packs_that_were_drawn_ahead_are_trained_on_as_those_that_were_not():
    """Whoever loads them draws, with neither the network nor the encoder; who trains draws nothing then."""
    denoising, packs = tokens.task(), tokens.packs_of(0)
    assert denoising.ahead is not None
    ahead = pickle.loads(pickle.dumps(denoising.ahead))(packs)  # as a process that was spawned has it
    here, there = (denoising.prepare(each, torch.device("cpu")) for each in (packs, ahead))
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.noised.eps, two.noised.eps) and torch.equal(one.noised.tokens.patches, two.noised.tokens.patches)
        assert torch.equal(one.noised.levels.spread(), two.noised.levels.spread()) and torch.equal(one.noised.mask, two.noised.mask)
        assert torch.equal(denoising(one).total, denoising(two).total) and one.sample_ids == two.sample_ids
    denoising.objective.noise = None
    denoising.prepare(ahead, torch.device("cpu"))
    denoising.encode = lambda pack, device: pack
    assert denoising.ahead is None


def test_numbers_come_from_the_device_as_they_are():
    """In one tensor, whatever their kinds and shapes, none with another's."""
    values = [torch.tensor(2.0**-30), torch.tensor(7)]
    parts = {"b": (torch.tensor([0.1, math.inf, -3.0]), torch.tensor([1, 0, 2**40])), "a": (torch.tensor(0.25), torch.tensor(True))}
    parts["none"] = (torch.zeros(0), torch.zeros(0))
    numbers, taken = fetched(values, parts)
    assert numbers == [2.0**-30, 7.0]
    assert list(taken) == ["b", "a", "none"]
    assert taken == {"b": ([torch.tensor(0.1).item(), math.inf, -3.0], [1.0, 0.0, 2.0**40]), "a": (0.25, 1.0), "none": ([], [])}


def test_gradients_are_clipped_to_the_norm_of_all_together(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.training.stand_ins.ToyTask", Plain)
    big = Pack(torch.full((2, 6), 50.0), (0, 1))
    seen = []
    stepped = torch.optim.AdamW.step

    def spy(self, *args):
        gradients = [value.grad for group in self.param_groups for value in group["params"]]
        seen.append(torch.nn.utils.get_total_norm(gradients).item())
        return stepped(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit(tmp_path / "run", until=1, total=1, dataset=Given([big]), optimizer=ADAMW)
    assert read(tmp_path / "run" / "metrics.jsonl")[0]["grad_norm"] > 10
    assert seen == [pytest.approx(1.0, rel=1e-5)]


def test_the_disk_is_full_for_a_while_and_training_goes_on(tmp_path, monkeypatch):
    from tests.faults import full

    real, calls = checkpoint.write_tensors, []

    def flaky(path, tensors):
        calls.append(path)
        return full() if len(calls) == 1 else real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", flaky)
    folder = tmp_path / "run"
    fit(folder, until=9, total=9, every=3)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(folder / "checkpoints")] == [6, 9]
    (event,) = [row for row in read(folder / "events.jsonl") if row["event"] == "save failed"]
    assert (event["step"], event["reason"]) == (3, "the disk is full")


def test_a_disk_that_is_full_at_the_end_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    from tests.faults import full

    monkeypatch.setattr(checkpoint, "write_tensors", lambda path, tensors: full())
    with pytest.raises(ValueError, match="the disk is full.*make room and continue with resume="):
        fit(tmp_path / "run", until=2, total=2)


def test_a_save_that_fails_by_a_mistake_of_ours_is_no_save(tmp_path, monkeypatch):
    """It happens in another thread: one that died unnoticed would pass for one that has written, and the folder be made a checkpoint."""
    real = checkpoint.write_tensors

    def broken(path, tensors):
        return real(path, tensors) if "step-00000003" not in str(path) else {}["no such key"]

    monkeypatch.setattr(checkpoint, "write_tensors", broken)
    with pytest.raises(KeyError, match="no such key"):
        fit(tmp_path / "run", until=9, total=9, every=3)
    assert not checkpoint.listed(tmp_path / "run" / "checkpoints")


def test_saves_that_the_disk_refuses_in_a_row_stop_the_run_where_that_is_wanted(tmp_path, monkeypatch):
    from tests.faults import full

    real, calls = checkpoint.write_tensors, []

    def flaky(path, tensors):
        calls.append(path.parent.name)
        return full() if len(set(calls)) in (1, 3, 4) else real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", flaky)
    with pytest.raises(
        ValueError, match=r"the checkpoint of step 12: the disk is full \(saves refused in a row: 2, checkpoint.patience=2\)"
    ):
        fit(tmp_path / "run", until=20, total=20, every=3, saves=2)
    refused = [row["step"] for row in read(tmp_path / "run" / "events.jsonl") if row["event"] == "save failed"]
    assert refused == [3, 9]  # that of step 6 came through: not two in a row


ALIVE = """
import gc, weakref
from sora.cost.tracing import attach
from tests.training.stand_ins import ALONE, Steps, module_of

module = module_of(steps=5)
attach(module, ALONE(callbacks=[]))
packs = Steps(packs=4)[0]
alive = [weakref.ref(pack) for pack in packs]
gc.collect()
gc.disable()
module.step(packs)
del packs
print("alive:", sum(ref() is not None for ref in alive))
"""


@pytest.mark.slow
def test_a_step_keeps_none_of_its_packs_alive():
    """They lie in memory that is shared with loader workers, an open file for each tensor: none may wait for garbage to be looked for.

    In a process without the checks of annotations, which keep what they looked at last.
    """
    done = subprocess.run([sys.executable, "-c", ALIVE], capture_output=True, text=True, check=True)
    assert "alive: 0" in done.stdout
