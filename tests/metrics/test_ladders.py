"""Real clips, damaged rung by rung: every kind of damage is seen by a distance that needs no download, the worse the farther."""

import json

import pytest

from experiments.ladders import page
from experiments.ladders.damage import FRAMES, LADDERS, frozen, shuffled, whole
from experiments.ladders.measured import climbed, real_sets
from sora.metrics.extractors.motion3d import Motion3D
from sora.metrics.extractors.rand3d import Random3D

CLIPS, SIDE = 24, 32


@pytest.fixture(scope="module")
def sets():
    return real_sets(clips=CLIPS, side=SIDE)


@pytest.fixture(scope="module")
def ladders(sets):
    return climbed(*sets, {"motion": Motion3D(), "appearance": Random3D()})


@pytest.mark.slow
@pytest.mark.parametrize("axis", LADDERS)
def test_each_damage_is_farther_the_worse_it_is_in_motion_or_in_appearance(ladders, axis):
    of = ladders[axis]
    assert len(LADDERS[axis][1]) >= 4 and any(ladder.monotone for ladder in of.values()), of
    seen = max(ladder.over_base[-1] for ladder in of.values() if ladder.monotone)
    assert seen > 3, of


@pytest.mark.slow
def test_motion_sees_what_is_frozen_or_shuffled_and_appearance_does_not(ladders):
    """The claims of both docstrings and of docs/evaluation.md, at a number of clips that people have."""
    for axis in ("freeze", "shuffle", "stride"):
        assert ladders[axis]["motion"].monotone and min(ladders[axis]["motion"].over_base) > 2, axis
    assert max(ladders["freeze"]["appearance"].over_base) < 2 and not ladders["freeze"]["appearance"].monotone
    assert max(ladders["colour"]["motion"].over_base) < 2 and ladders["colour"]["appearance"].monotone  # motion is blind to colour


@pytest.mark.slow
def test_damage_is_what_it_says(sets):
    clips = sets[0]
    held = frozen(clips, 4)
    assert (held[:, 4:8] == held[:, 4:5]).all() and (held[:, 0] == clips[:, 0]).all() and (frozen(clips, FRAMES) == clips[:, :1]).all()
    mixed = shuffled(clips, 4)
    assert (mixed[:, :4].sum(dim=1) == whole(clips)[:, :4].sum(dim=1)).all() and not (mixed == whole(clips)).all()
    assert (sets[0][:, 0].float() - sets[1][:, 0].float()).abs().mean() > 1  # the two sets are not one


def test_the_page_is_what_was_measured():
    found = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.page(found), "run: python -m experiments.ladders pages"
    assert set(found["axes"]) == set(LADDERS)
    for axis, of in found["axes"].items():
        assert of["rungs"] == list(LADDERS[axis][1]) and len(of["rungs"]) >= 4 and of["monotone"], axis


def test_what_docstrings_and_pages_say_of_the_extractors_is_what_was_measured():
    """Of TransNetV2 that it sees appearance, and motion only coarsely; of the flow that it sees motion and no colour."""
    axes = json.loads(page.RESULTS.read_text(encoding="utf-8"))["axes"]
    assert {"motion3d", "flow_histograms", "rand3d", "transnetv2"} <= set(axes["noise"]["over_base"])
    shots = {axis: of["over_base"]["transnetv2"] for axis, of in axes.items()}
    for axis in ("noise", "blur", "codec", "colour", "stride"):
        assert "transnetv2" in axes[axis]["monotone"], axis
    assert max(shots["freeze"][:2]) < 1.2 and min(shots["freeze"][2:]) > 1.5 and max(shots["shuffle"]) < 2.5
    for axis in ("freeze", "shuffle", "stride"):
        for motion in ("motion3d", "flow_histograms"):
            assert motion in axes[axis]["monotone"] and min(axes[axis]["over_base"][motion]) > 2, (axis, motion)
    assert max(axes["colour"]["over_base"]["flow_histograms"] + axes["colour"]["over_base"]["motion3d"]) < 1.1
