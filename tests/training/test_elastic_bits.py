"""The bits of a run do not depend on how many ranks trained it: for both tasks, at every power of two that divides the packs of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.soak import EVERY, Trained, alike, digest, ended, prepared, started

STEPS = EVERY


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    prepared(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "packs"),
    [("diffusion", 8), ("vae", 4), pytest.param("diffusion", 12, marks=pytest.mark.long), pytest.param("vae", 8, marks=pytest.mark.long)],
)
def test_one_two_and_four_ranks_end_with_the_same_bits(home, task, packs):
    """Losses, gradient norms, weights, averages and optimiser state of real runs."""
    what, runs = Trained(task, packs), {}
    for count in (1, 2, 4):
        runs[count] = home / f"{task}-{packs}-{count}"
        ended(started(home, runs[count], what, count=count, steps=STEPS), within=120)
    for count in (2, 4):
        alike(runs[count], runs[1])
        assert digest(runs[count], steps=STEPS) == digest(runs[1], steps=STEPS), count
