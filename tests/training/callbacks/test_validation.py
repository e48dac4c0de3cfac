"""An evaluation leaves no trace in what is trained, waits until it fits into its share of the time, and measures the averaged weights."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from sora.assembly.validation import averaged, chosen_weights, raw
from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.runs.run import create
from sora.system import files as storage
from sora.training.callbacks import validation as evaluation
from sora.training.callbacks.journal import Journal
from sora.training.callbacks.validation import Evaluations, allowance
from sora.training.guard import Suspects
from sora.training.logging import goodput as phases
from sora.training.logging.tracker import NoTracker
from sora.training.optim.ema import PostHoc
from tests.training import stand_ins
from tests.training.stand_ins import module_of
from tests.training.test_resume import lines

TOTAL = 12


class Meddling:
    """A measure that does all it may: draws from every global state, and looks at the weights."""

    asked = False  # whether this rank was asked to stop

    def __init__(self, pieces: int = 3, takes=lambda: None) -> None:
        self.pieces, self.takes, self.seen, self.earlier = pieces, takes, [], None

    def begin(self, module, earlier):
        self.earlier = list(earlier)

    def work(self, module, weights):
        assert not any(each.training for each in module.task.modules()) and not torch.is_grad_enabled()
        for piece in range(self.pieces):
            torch.randn(3)
            np.random.default_rng()
            np.random.rand()
            self.takes()
            yield (piece + 1) / self.pieces
        value = float(module.task.network.enter.weight.detach().double().sum())
        self.seen.append((module.counters.step, weights, value))
        return {"value": value}


def fit(folder: Path, measures, *, until=TOTAL, every=15, share=None, weights=("ema",), clock=None, more=(), widths=None, **settings):
    def also(run, journal, watched):
        if not measures:
            return list(more)
        told = {"steps": TOTAL, "phases": watched, "journal": journal, "tracker": NoTracker(), "stop": lambda: Meddling.asked}
        chosen = chosen_weights(weights, widths or {})
        return [*more, Evaluations(run, every=every, share=share, weights=chosen, measures=measures, **told)]

    return stand_ins.fit(folder, until=until, total=TOTAL, every=5, phases=clock, also=also, **settings)


def final(folder: Path) -> dict[str, str]:
    path = checkpoint.folder_of(folder / "checkpoints", TOTAL)
    hashes = {file.name: storage.file_hash(file) for file in path.iterdir() if file.suffix == ".safetensors"}
    hashes.pop("rng.safetensors")  # the annotations' checker draws from python's state
    kept = checkpoint.load(path).tensors["rng"]
    return hashes | {name: storage.text_hash(str(value.tolist())) for name, value in kept.items() if "python" not in name}


@pytest.mark.slow
def test_a_run_with_evaluations_is_bit_for_bit_the_run_without(tmp_path):
    fit(tmp_path / "without", [])
    meddling = Meddling()
    fit(tmp_path / "with", [meddling], weights=("ema", "raw"))
    assert len(meddling.seen) >= 6
    assert final(tmp_path / "with") == final(tmp_path / "without")
    assert lines(tmp_path / "with") == lines(tmp_path / "without")


@pytest.mark.slow
def test_what_is_measured_is_the_averaged_weights_and_each_line_says_when(tmp_path):
    meddling = Meddling()
    module = fit(tmp_path / "run", [meddling], weights=("ema", "raw"))
    rows = read(tmp_path / "run" / "evaluation.jsonl")
    assert [row["weights"] for row in rows] == ["ema", "raw"] * (len(rows) // 2)
    samples = {row["step"]: row["samples"] for row in read(tmp_path / "run" / "metrics.jsonl")}
    marks = [step for step in samples if samples[step] // 15 > samples.get(step - 1, 0) // 15]
    assert [row["step"] for row in rows[::2]] == [*marks, *([TOTAL] if marks[-1] != TOTAL else [])]
    assert all(row["samples"] == samples[row["step"]] for row in rows)
    ends = {name: float(value.double().sum()) for name, value in module.average.shadow.items()}
    assert meddling.seen[-2] == (TOTAL, "ema", ends["network.enter.weight"])
    assert meddling.seen[-1] == (TOTAL, "raw", float(module.task.network.enter.weight.detach().double().sum()))
    assert meddling.seen[-1][2] != meddling.seen[-2][2]


@pytest.mark.slow
def test_profiles_that_a_run_keeps_are_measured_by_their_widths(tmp_path):
    meddling, widths = Meddling(), {"ema": 0.1, "ema_2": 0.05}
    average = PostHoc(widths=[0.1, 0.05])
    module = fit(tmp_path / "run", [meddling], weights=(0.05, "ema"), widths=widths, average=average)
    kept = {kind: float(shadow["network.enter.weight"].double().sum()) for kind, shadow in average.kinds().items()}
    assert meddling.seen[-2:] == [(TOTAL, "0.05", kept["ema_2"]), (TOTAL, "ema", kept["ema"])]
    assert len({kept["ema"], kept["ema_2"], float(module.task.network.enter.weight.detach().double().sum())}) == 3


@pytest.mark.slow
def test_a_resumed_run_makes_the_lines_that_the_whole_one_has(tmp_path):
    fit(tmp_path / "whole", [Meddling()])
    fit(tmp_path / "cut", [Meddling()], until=8)  # its last checkpoint is of step 5
    assert max(row["step"] for row in read(tmp_path / "cut" / "evaluation.jsonl")) > 5
    again = Meddling()
    fit(tmp_path / "cut", [again], resumed=checkpoint.load(checkpoint.newest(tmp_path / "cut" / "checkpoints")))
    assert again.earlier and max(row["step"] for row in again.earlier) <= 5
    plain = [[{**row, "seconds": 0} for row in read(tmp_path / name / "evaluation.jsonl")] for name in ("whole", "cut")]
    assert plain[0] == plain[1] and len(plain[0]) >= 3


def test_the_allowance_is_a_share_of_all_time():
    spent = {"start": 10.0, "step": 80.0, "evaluation": 4.0, "end": 6.0}
    assert allowance(spent, 0.1) == pytest.approx(6.0) and allowance(spent, 0.04) == pytest.approx(0.0)
    assert allowance(spent, None) == float("inf")


class Clocked(Callback):
    """A clock that only steps and pieces move."""

    def __init__(self, monkeypatch, *, step: float) -> None:
        self.now, self.step = 0.0, step
        stand_in = SimpleNamespace(monotonic=lambda: self.now, time=time.time)
        monkeypatch.setattr(phases, "time", stand_in)
        monkeypatch.setattr(evaluation, "time", stand_in)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.now += self.step

    def takes(self, seconds: float):
        def wait() -> None:
            self.now += seconds

        return wait


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_training_never_waits_longer_than_the_share_and_a_piece(tmp_path, monkeypatch, share):
    clock = Clocked(monkeypatch, step=10.0)
    watched = phases.Phases()
    monkeypatch.setattr(evaluation, "PAUSE", 1)
    meddling = Meddling(pieces=4, takes=clock.takes(2.0))
    fit(tmp_path / "run", [meddling], every=1, share=share, clock=watched, more=[clock])
    seconds = watched.seconds()
    assert seconds["evaluation"] <= share * sum(seconds.values()) + 2.0
    assert {0.05: 0 <= len(meddling.seen) <= 1, 0.2: 2 <= len(meddling.seen) <= 4, 1.0: len(meddling.seen) == TOTAL}[share]
    assert len(read(tmp_path / "run" / "evaluation.jsonl")) == len(meddling.seen)


@pytest.mark.slow
def test_one_that_takes_longer_than_expected_is_cut_short_and_told(tmp_path, monkeypatch, capsys):
    clock = Clocked(monkeypatch, step=10.0)
    watched = phases.Phases()
    slow = Meddling(pieces=50, takes=clock.takes(5.0))
    fit(tmp_path / "run", [slow], every=1, share=0.3, clock=watched, more=[clock])
    assert slow.seen == [] and read(tmp_path / "run" / "evaluation.jsonl") == []
    assert watched.seconds()["evaluation"] < 0.3 * clock.now + 5.0
    said = capsys.readouterr()
    assert "more than evaluation.share=0.3 of the time so far" in said.out + said.err


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 1.0])
def test_a_signal_ends_an_evaluation_at_its_next_piece(tmp_path, monkeypatch, capsys, share):
    pieces = []

    def takes():
        pieces.append(len(pieces))
        monkeypatch.setattr(Meddling, "asked", len(pieces) > 4)

    fit(tmp_path / "run", [Meddling(pieces=10_000, takes=takes)], every=10_000, share=share)
    assert len(pieces) == 5 and read(tmp_path / "run" / "evaluation.jsonl") == []
    said = capsys.readouterr()
    assert "the last evaluation is left out: the run was asked to stop" in said.out + said.err


def test_settings_that_mean_nothing_are_refused(tmp_path):
    run = create(tmp_path / "run", config="", info={"kind": "vae"})
    rest = {"weights": {"ema": averaged}, "measures": [], "steps": 1, "phases": phases.Phases(), "tracker": NoTracker()}
    told = {"phases": phases.Phases(), "suspects": Suspects(lambda *_: None, ())}
    rest["journal"] = Journal(run, every=1, steps=1, unit="tokens", tracker=NoTracker(), resumed=None, **told)
    for settings, told in (({"every": 0, "share": 0.1}, "evaluation.every=0"), ({"every": 1, "share": 0.0}, "evaluation.share=0.0")):
        with pytest.raises(ValueError, match=told):
            Evaluations(run, **settings, **rest)
    with pytest.raises(ValueError, match="choose from ema, raw"):
        chosen_weights(["best"], {})
    with pytest.raises(ValueError, match="choose from ema, raw, 0.1, 0.05; other averages"):
        chosen_weights([0.07], {"ema": 0.1, "ema_2": 0.05})
    assert isinstance(raw(module_of(steps=1)), nullcontext)
