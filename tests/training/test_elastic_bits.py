"""The bits of a run do not depend on how many ranks trained it: for all tasks, at every power of two that divides the packs of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora import cli
from tests.training.soak import Trained, alike, digest, ended, prepared, started, words

STEPS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    prepared(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "packs", "counts"),
    [
        ("diffusion", 8, [4]),
        ("vae", 4, [4]),
        pytest.param("captioner", 4, [2, 4], marks=pytest.mark.long),
        pytest.param("diffusion", 12, [2, 4], marks=pytest.mark.long),
        pytest.param("vae", 8, [2, 4], marks=pytest.mark.long),
    ],
)
def test_one_two_and_four_ranks_end_with_the_same_bits(home, task, packs, counts):
    """Losses, gradient norms, weights, averages and optimiser state of real runs."""
    what, runs = Trained(task, packs), {count: home / f"{task}-{packs}-{count}" for count in [1, *counts]}
    assert cli.run("train", words(home, runs[1], what, steps=STEPS)) == 0  # here, so that ranks are forked from what it has imported
    for count in counts:
        ended(started(home, runs[count], what, count=count, steps=STEPS), within=120)
        alike(runs[count], runs[1])
        assert digest(runs[count], steps=STEPS) == digest(runs[1], steps=STEPS), count
