"""A run that is cut anywhere goes on as if it had not been."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from sora.training.module import Loss, TrainingModule
from tests.training.stand_ins import ADAMW, MUON, Pack, Steps, ToyTask, fit, module_of

SPEEDS = {"tokens_per_second", "clips_per_second", "tflops_per_second", "peak_tflops_per_second", "mfu"}
TIMINGS = {"seconds", "step_seconds", "data_share", "machine", *SPEEDS}
TOTAL = 24

pytestmark = pytest.mark.slow


def lines(folder: Path) -> list[dict]:
    """What metrics.jsonl says, to the last bit, without what a clock says."""
    exact = [{name: value for name, value in row.items() if name not in TIMINGS} for row in read(folder / "metrics.jsonl")]
    return [{name: value.hex() if isinstance(value, float) else value for name, value in row.items()} for row in exact]


def final(folder: Path) -> dict[str, str]:
    """The hashes of every tensor file of the last checkpoint, and of torch's and numpy's random states."""
    path = checkpoint.newest(folder / "checkpoints")
    state = checkpoint.load(path)
    assert state.step == TOTAL
    hashes = {file.name: storage.file_hash(file) for file in path.iterdir() if file.suffix == ".safetensors"}
    # python's own state is drawn from by the checker of annotations that tests run under; it has a test of its own
    hashes.pop("rng.safetensors")
    random = {name: value for name, value in state.tensors["rng"].items() if "python" not in name}
    assert len(random) >= 3
    return hashes | {name: storage.text_hash(str(value.tolist())) for name, value in random.items()}


class Likelihood(ToyTask):
    """A loss far below zero, with a part that is infinite at every step and one that is so at some."""

    def forward(self, pack: Pack) -> Loss:
        plain = super().forward(pack)
        count = pack.count
        some = torch.stack([torch.tensor(math.inf if pack.sample_ids[0] % 3 else 1.0), -count])
        parts = {**plain.parts, "never": (torch.tensor(-math.inf), count), "levels": (some, torch.stack([count, count]))}
        return replace(plain, total=plain.total - 50 * count, parts=parts)


def likelihood(**settings) -> TrainingModule:
    module = module_of(**settings, spike=50.0, history=8)
    module.task = Likelihood()
    return module


def test_a_loss_below_zero_with_parts_that_are_not_finite_is_cut_and_goes_on_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, log_every=5, make=likelihood)
    expected = lines(tmp_path / "whole")
    assert all(float.fromhex(row["loss"]) < -40 and row["never"] is None for row in expected)
    for cut in (3, 7, 14):
        folder = tmp_path / f"cut{cut}"
        torch.manual_seed(0)
        fit(folder, until=TOTAL, total=TOTAL, log_every=5, stop_at=cut, make=likelihood)
        resume(folder, log_every=5, make=likelihood)
        assert lines(folder) == expected and final(folder) == final(tmp_path / "whole")


def resume(folder: Path, **settings) -> None:
    fit(folder, until=TOTAL, total=TOTAL, resumed=checkpoint.load(checkpoint.newest(folder / "checkpoints")), **settings)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_run_cut_anywhere_is_bit_identical(tmp_path, optimizer):
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, optimizer=optimizer)
    expected = lines(tmp_path / "whole")
    assert [row["step"] for row in expected] == list(range(1, TOTAL + 1))
    for cut in (1, 2, 7, 13, 23):
        folder = tmp_path / f"cut{cut}"
        fit(folder, until=TOTAL, total=TOTAL, optimizer=optimizer, stop_at=cut)
        assert [row["step"] for row in lines(folder)] == list(range(1, cut + 1))
        resume(folder, optimizer=optimizer)
        assert lines(folder) == expected
        assert final(folder) == final(tmp_path / "whole")


def test_workers_change_nothing_even_across_a_cut(tmp_path):
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, workers=0)
    for before, after in ((4, 0), (0, 2), (1, 2)):
        folder = tmp_path / f"{before}{after}"
        fit(folder, until=TOTAL, total=TOTAL, workers=before, stop_at=9)
        resume(folder, workers=after)
        assert lines(folder) == lines(tmp_path / "whole")
        assert final(folder) == final(tmp_path / "whole")


def test_a_run_that_died_between_checkpoints_makes_the_lost_steps_again(tmp_path):
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL)
    folder = tmp_path / "died"
    fit(folder, until=13, total=TOTAL, every=5)  # ends without a last checkpoint, as after kill -9
    assert [row["step"] for row in lines(folder)] == list(range(1, 14))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 14, "loss": 0.1')  # torn
    assert checkpoint.step_of(checkpoint.newest(folder / "checkpoints")) == 10
    resume(folder)
    assert lines(folder) == lines(tmp_path / "whole")
    assert final(folder) == final(tmp_path / "whole")


def test_a_cut_inside_a_logging_window_writes_the_same_lines(tmp_path):
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, log_every=8)
    fit(tmp_path / "cut", until=TOTAL, total=TOTAL, log_every=8, stop_at=11)
    resume(tmp_path / "cut", log_every=8)
    assert [row["step"] for row in lines(tmp_path / "whole")] == [8, 16, 24]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_cut_right_after_a_skipped_step(tmp_path):
    poison = Steps(poison={5: float("nan"), 6: float("nan")})
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, dataset=poison, patience=3)
    for cut in (6, 7):
        folder = tmp_path / f"cut{cut}"
        fit(folder, until=TOTAL, total=TOTAL, dataset=poison, patience=3, stop_at=cut)
        resume(folder, dataset=poison, patience=3)
        assert lines(folder) == lines(tmp_path / "whole")
        assert final(folder) == final(tmp_path / "whole")


def test_checkpoints_and_logging_change_nothing(tmp_path):
    fit(tmp_path / "plain", until=TOTAL, total=TOTAL)
    fit(tmp_path / "busy", until=TOTAL, total=TOTAL, every=1, log_every=3)
    assert final(tmp_path / "busy") == final(tmp_path / "plain")


class Signalling(Steps):
    """Sends signals to this process while step 6 is being loaded, so before it is made."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers, self.sent = numbers, False

    def __getitem__(self, step: int):
        if step == 5 and not self.sent:
            self.sent = True
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().__getitem__(step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_stops(tmp_path, number):
    before = signal.getsignal(number)
    module = fit(tmp_path / "run", until=TOTAL, total=TOTAL, dataset=Signalling(number, number))
    assert checkpoint.step_of(checkpoint.newest(tmp_path / "run" / "checkpoints")) == module.counters.step
    assert module.counters.step in (5, 6)
    assert signal.getsignal(number) == before
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL)
    resume(tmp_path / "run")
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_everything_that_moves_while_training_is_in_the_checkpoint(tmp_path):
    """Every attribute of the module that differs after some steps is one that resuming sets: nothing is forgotten."""
    module = fit(tmp_path / "run", until=6, total=TOTAL, every=6)
    state = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints"))
    tensors = {f"{file}/{name}" for file in state.tensors for name in state.tensors[file]}
    for name, value in module.task.state_dict().items():
        assert f"model/{name}" in tensors
        assert torch.equal(state.tensors["model"][name], value)
    for name in module.trained():
        assert f"ema/{name}" in tensors
        assert any(entry.startswith(f"optimizer/{name}:") for entry in tensors)
    assert set(state.facts["counters"]) == set(vars(module.counters))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    fit(tmp_path / "run", until=3, total=TOTAL, every=3)
    with pytest.raises(ValueError, match=r"of another model: network\.enter\.weight is \(8, 6\)"):
        resume(tmp_path / "run", width=9)
    with pytest.raises(ValueError, match="averaged weights"):
        resume(tmp_path / "run", averaged=False)
