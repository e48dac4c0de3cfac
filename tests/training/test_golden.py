"""Pinned numbers of a tiny run: whoever changes the loop, an optimiser, a schedule or an average learns of it here.

After a change that is meant: SORA_PIN=1 pytest tests/training/test_golden.py, and say in the commit why they moved.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from tests.training.stand_ins import ADAMW, MUON, fit

GOLDEN = Path(__file__).parent.parent / "golden" / "training_toy.json"


@pytest.mark.parametrize(("name", "optimizer"), [("adamw", ADAMW), ("muon", MUON)])
def test_losses_norms_and_averages_of_a_tiny_run(tmp_path, name, optimizer):
    fit(tmp_path / "run", until=16, total=16, optimizer=optimizer)
    rows = read(tmp_path / "run" / "metrics.jsonl")
    state = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints"))
    found = {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "lr": [row["lr"] for row in rows],
        "averages": {key: value.double().norm().item() for key, value in sorted(state.tensors["ema"].items())},
    }
    if os.environ.get("SORA_PIN"):
        pinned = storage.read_json(GOLDEN) if GOLDEN.exists() else {}
        storage.write_json(GOLDEN, {**pinned, name: found})
    golden = storage.read_json(GOLDEN)[name]
    for key in ("loss", "grad_norm", "lr"):
        assert found[key] == pytest.approx(golden[key], rel=1e-4)
    assert found["averages"] == pytest.approx(golden["averages"], rel=1e-4)
