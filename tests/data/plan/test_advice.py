"""What a refusal advises is what the plan then takes: the values it names fit, and the next smaller or larger ones do not."""

import re

import numpy as np
import pytest

from tests.data.plan.making import clips, plan
from tests.data.plan.test_crops import LARGE, SMALL, crops

RNG = np.random.default_rng(4)
SHAPES = [RNG.integers(1, (40, 12, 14), size=(30, 3)) for _ in range(6)]


@pytest.mark.parametrize("shapes", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_the_values_that_a_refusal_names_fit_and_no_nearer_ones_do(shapes, patch, share):
    shapes = np.maximum(shapes, patch)
    longest = int((shapes // patch).prod(axis=1).max())
    budget = max(1, int(longest * share))
    with pytest.raises(ValueError, match="token") as refused:
        plan(clips(shapes, patch=patch), budget=budget)
    told = str(refused.value)
    assert int(re.search(r"raise plan\.budget to (\d+)", told)[1]) == longest
    plan(clips(shapes, patch=patch), budget=longest)
    frames = re.search(r"plan\.frames=(\d+)", told)
    if frames is None:
        with pytest.raises(ValueError, match="token"):
            plan(clips(shapes, patch=patch), budget=budget, frames=1)
        return
    plan(clips(shapes, patch=patch), budget=budget, frames=int(frames[1]))
    with pytest.raises(ValueError, match="token"):
        plan(clips(shapes, patch=patch), budget=budget, frames=int(frames[1]) + patch[0])


def test_the_crop_that_a_refusal_names_is_held_by_every_clip():
    with pytest.raises(ValueError, match="no clip is as large") as refused:
        crops(shapes=[[64, 32, 32]])
    told = re.search(r"plan\.shapes=(\[\[[\d,]+\]\])", str(refused.value))[1]
    frames, height, width = (int(size) for size in told.strip("[]").split(","))
    made = crops(shapes=[[frames, height, width]])
    assert not made.skipped and (frames, height, width) == (1, 32, 32)
    assert min(SMALL.frames.min(), LARGE.frames.min()) == frames
