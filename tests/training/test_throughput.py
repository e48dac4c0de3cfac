"""The log's share of what the devices could do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sora.runs import checkpoint
from sora.runs.jsonl import read
from tests.training.stand_ins import Steps, fit

PEAK = 3e7  # no such network reaches it, and shares of it have digits enough


def test_mfu_is_the_models_operations_over_what_the_devices_could_make(tmp_path):
    fit(tmp_path / "run", until=6, total=6, log_every=3, peak=lambda: PEAK)
    for row, steps in zip(read(tmp_path / "run/metrics.jsonl"), (range(3), range(3, 6)), strict=True):
        flops = sum(pack.flops for step in steps for pack in Steps()[step])
        seconds = row["step_seconds"]
        assert row["mfu"] == pytest.approx(flops / (PEAK * 3 * seconds), abs=5.1e-5 + row["mfu"] * 5.1e-6 / seconds)  # what rounding leaves


def test_a_peak_that_the_steps_surpass_was_measured_on_a_busy_machine_and_is_asked_again(tmp_path, capsys):
    asked = iter([1.0, 1e8])
    fit(tmp_path / "run", until=6, total=6, log_every=3, peak=lambda: next(asked))
    rows = read(tmp_path / "run/metrics.jsonl")
    assert all(0 < row["mfu"] <= 1 and row["peak_tflops_per_second"] == 1e-4 for row in rows)
    assert capsys.readouterr().err.count("steps surpass the peak") == 1
    asked = iter([1.0, *[2.0] * 6])  # however often: what steps reach is no more than the peak
    fit(tmp_path / "again", until=6, total=6, log_every=1, peak=lambda: next(asked))
    assert all(0 < row["mfu"] <= 1 for row in read(tmp_path / "again/metrics.jsonl"))


def test_without_a_peak_none_is_told(tmp_path):
    fit(tmp_path / "run", until=2, total=2)
    assert "mfu" not in read(tmp_path / "run/metrics.jsonl")[-1]


def test_a_run_begun_before_operations_were_counted_goes_on(tmp_path):
    fit(tmp_path / "run", until=3, total=6, every=3, log_every=2)
    state = checkpoint.load(checkpoint.newest(tmp_path / "run/checkpoints"))
    facts = {**state.facts, "window": {key: value for key, value in state.facts["window"].items() if key != "flops"}}
    fit(tmp_path / "run", until=6, total=6, log_every=2, resumed=replace(state, facts=facts), peak=lambda: PEAK)
    assert [row["step"] for row in read(tmp_path / "run/metrics.jsonl")] == [2, 4, 6]
