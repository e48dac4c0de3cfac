"""What is told of a plan is what its steps hold."""

import numpy as np
import pytest

from sora.data.plan.filling import Bucketed, Packed, Padded
from sora.data.plan.report import figures, lines
from tests.data.plan.making import RNG, lengths, plan

TOKENS = np.minimum(1024, np.exp(RNG.normal(5, 1.0, size=900))).astype(int) + 1


@pytest.mark.parametrize("filling", [Packed(), Bucketed(), Padded()], ids=lambda filling: type(filling).__name__)
def test_figures_are_the_steps_own(filling):
    made = plan(lengths(TOKENS), packs=4, filling=filling, max_clips=512)
    found = figures(made, ranks=[1, 4], windows=None)
    planned = [made.at(step) for step in range(int(found.steps))]
    held = [sum(TOKENS[item.row] for item in step.items) for step in planned]
    assert found.tokens_per_step == (min(held), pytest.approx(np.mean(held)), max(held))
    assert found.fill == pytest.approx(sum(held) / (len(held) * 4 * 1025))
    assert found.samples_per_step == pytest.approx(np.mean([len(step.items) for step in planned]))
    assert (found.clips, found.cut, found.frames_kept, found.whole) == (900, 0, 1.0, True)
    assert found.balance[1] == pytest.approx(1) and found.useful[4] <= found.useful[1]
    assert (found.tail == 0) == (found.steps == int(found.steps))
    assert [line.split()[:2] for line in lines(made, found) if "waiting for the slowest" in line] == [["1", "rank"], ["4", "ranks"]]


def test_the_better_planner_has_the_better_figures():
    found = {type(filling): figures(plan(lengths(TOKENS), packs=8, filling=filling, max_clips=512), ranks=[8], windows=None).useful[8]
             for filling in (Packed(), Padded())}  # fmt: skip
    assert found[Packed] > 0.97 > 0.7 > found[Padded]


def test_what_is_left_out_or_cut_is_told():
    made = plan(lengths([5, 2000, 900]), drop_long=True, frames=None)
    assert "left out         1: longer than the token budget of 1025" in lines(made, figures(made, ranks=[1], windows=None))
    cut = plan(lengths([5, 2000, 900]), frames=500)
    found = figures(cut, ranks=[2], windows=4)
    assert (found.cut, found.frames_kept) == (2, pytest.approx(1005 / 2905))
    assert any(line.startswith("cut              2 clips to 500 frames") for line in lines(cut, found))


def test_a_part_of_a_long_epoch_tells_of_all_of_it():
    made = plan(lengths(np.tile(TOKENS, 8)), packs=4, window=16, max_clips=512)
    part, whole = (figures(made, ranks=[4], windows=windows) for windows in (3, None))
    assert (part.whole, whole.whole) == (False, True)
    assert part.steps == pytest.approx(whole.steps, rel=0.03)
    assert part.useful[4] == pytest.approx(whole.useful[4], abs=0.01)


def test_ranks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="does not divide over 3 ranks"):
        figures(plan(lengths([5, 5])), ranks=[3], windows=None)
