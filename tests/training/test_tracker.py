"""Trackers: whatever they do, training neither waits nor fails, and metrics.jsonl has it all."""

from __future__ import annotations

import csv
import os
import sys
import time

import pytest

from sora.training.sinks import Csv, TensorBoard, Wandb
from sora.training.tracker import Tracker


def tracker(folder, sink=None, *, command=None, patience=20.0, room=1000) -> Tracker:
    return Tracker(sink or Csv(), folder=folder, identity="abc", config={"seed": 0}, patience=patience, room=room, command=command)


def test_csv_copes_with_columns_that_come_later_and_with_a_resume(tmp_path):
    for rows in ([(1, {"loss": 1.0}), (2, {"loss": 0.5, "psnr": 20.0}), (3, {"loss": 0.4})], [(3, {"loss": 0.3}), (4, {"loss": 0.2})]):
        one = tracker(tmp_path)
        for step, values in rows:
            one.log(step, values)
        one.close()
        assert one.problem is None
    with open(tmp_path / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["psnr"]) for row in found] == [
        ("1", "1.0", ""),
        ("2", "0.5", "20.0"),
        ("3", "0.3", ""),
        ("4", "0.2", ""),
    ]


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(60)", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "import sys; sys.stdin.readline(); 1/0"],
    ids=["hangs", "refuses", "is killed", "crashes"],
)
def test_a_tracker_that_hangs_or_dies_costs_neither_time_nor_the_run(tmp_path, code, capfd):
    began = time.monotonic()
    one = tracker(tmp_path, command=[sys.executable, "-c", code], patience=0.5, room=50)
    for step in range(500):
        one.log(step, {"loss": 1.0, "padding": "x" * 2000})
    assert time.monotonic() - began < 2
    one.close()
    one.close()
    assert time.monotonic() - began < 4
    assert one.problem is not None
    with pytest.raises(ProcessLookupError):
        os.kill(one._process.pid, 0)
    assert "metrics.jsonl in the run folder has them all" in capfd.readouterr().out


@pytest.mark.slow
def test_tensorboard_writes_its_events(tmp_path):
    one = tracker(tmp_path, TensorBoard(), patience=60)
    one.log(1, {"loss": 1.0})
    one.close()
    assert one.problem is None
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_wandb_runs_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    one = tracker(tmp_path, Wandb(project="test", entity=None, mode="offline", tags=[], timeout=5.0), patience=60)
    one.log(1, {"loss": 1.0})
    one.close()
    assert one.problem is None
    assert list((tmp_path / "wandb").glob("offline-run-*"))
