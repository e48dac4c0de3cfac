"""Features of motion: what they are of, in closed form, and what they must not depend on."""

import math

import numpy as np
import pytest
import torch

from sora.metrics.extractors.features import VideoFeatures, describe
from sora.metrics.extractors.flow_histograms import ANGLES, FlowHistograms, histogram
from sora.metrics.extractors.motion3d import LAGS, LEAST, USUAL, Motion3D

MOTION, FLOW = Motion3D(), FlowHistograms()


def texture(frames, side, *, step):
    """A smooth pattern that moves `step` (columns, rows) pixels a frame; wide enough that nothing comes back."""
    rows, columns = np.mgrid[0:side, 0:side].astype(float)
    moved = [(columns - step[0] * time, rows - step[1] * time) for time in range(frames)]
    grey = [127 + 60 * np.sin(0.5 * x + 0.2 * y) + 50 * np.cos(0.35 * y - 0.15 * x) for x, y in moved]
    return torch.from_numpy(np.stack(grey).clip(0, 255).round().astype(np.uint8))[..., None].expand(-1, -1, -1, 3).contiguous()


@pytest.mark.parametrize("extractor", [MOTION, FLOW], ids=lambda one: one.name)
def test_a_video_has_its_features_whatever_is_beside_it(extractor):
    draw = torch.Generator().manual_seed(0)
    videos = torch.randint(0, 256, (3, 4, 18, 26, 3), dtype=torch.uint8, generator=draw)
    together = extractor(videos)
    assert isinstance(extractor, VideoFeatures) and together.shape == (3, extractor.dimension) and torch.isfinite(together).all()
    assert torch.equal(together, torch.cat([extractor(video[None]) for video in videos]))
    assert torch.allclose(together, extractor(videos.float() / 255), atol=1e-4)
    assert describe(extractor)["sha256"] == describe(type(extractor)())["sha256"] and extractor.fingerprint != ""


def test_numbers_of_change_in_closed_form():
    """Frames that grow brighter by 3 of 255 each: lag k sees 3k, alike at all scales, and it is even along time."""
    steps = torch.arange(12, dtype=torch.uint8)[None, :, None, None, None] * 3
    found = MOTION(steps.expand(1, 12, 8, 12, 3)).reshape(3, 5)
    wanted = [math.log((3 * lag / 255 + LEAST) / USUAL) for lag in LAGS]
    for scale in found.tolist():
        assert [scale[0], *scale[2:]] == pytest.approx(wanted, abs=1e-5) and scale[1] == pytest.approx(math.log(LEAST / USUAL), abs=1e-4)
    still = MOTION(torch.full((1, 12, 8, 12, 3), 90, dtype=torch.uint8))
    assert torch.allclose(still, torch.full((1, 15), math.log(LEAST / USUAL)))


def test_a_lag_that_a_clip_is_too_short_for_is_its_longest():
    video = torch.randint(0, 256, (1, 3, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = MOTION(video).reshape(3, 5)
    assert torch.equal(found[:, 3], found[:, 2]) and torch.equal(found[:, 4], found[:, 2]) and not torch.equal(found[:, 2], found[:, 0])


def test_what_is_held_changes_unevenly_and_what_is_shuffled_more():
    video = texture(17, 32, step=(1.0, 0.0))[None]
    held, shuffled = (
        video[:, [time // 2 * 2 for time in range(17)]],
        video[:, torch.randperm(17, generator=torch.Generator().manual_seed(2))],
    )
    plain, at_twos, mixed = (MOTION(one).reshape(3, 5) for one in (video, held, shuffled))
    assert (at_twos[:, 1] > plain[:, 1] + 1).all() and (mixed[:, 0] > plain[:, 0] + 0.3).all()
    backwards = MOTION(video.flip(1)).reshape(3, 5)
    assert torch.allclose(backwards, plain, atol=1e-5)  # it does not know where to, as its docstring says


def test_a_histogram_shares_a_direction_between_the_two_nearest():
    """Of 22.5 degrees both of 0 and 45 have a half; of one at 90 degrees the third has all; the weight is log(1 + length)."""
    between = torch.tensor([math.cos(math.pi / 8), math.sin(math.pi / 8)]) * 4
    found = histogram(between[None, :, None, None].expand(1, 2, 3, 5))
    assert found[:2].tolist() == pytest.approx([math.log(5) / 2] * 2, abs=1e-5) and found[2:ANGLES].abs().max() < 1e-5
    down = histogram(torch.tensor([0.0, 7.0])[None, :, None, None].expand(1, 2, 3, 5))
    assert down[2] == pytest.approx(math.log(8)) and down[ANGLES:].tolist() == [0, 0, 1, 0, 0, 0]  # 7 thousandths: between 5 and 10


@pytest.mark.slow
@pytest.mark.parametrize(("step", "direction"), [((1.5, 0.0), 0), ((0.0, 1.5), 2), ((-1.5, 0.0), 4), ((0.0, -1.5), 6)])
def test_flow_knows_where_to_things_move_and_that_they_move_evenly(step, direction):
    found = FLOW(texture(6, 48, step=step)[None])[0]
    assert int(found[:ANGLES].argmax()) == direction and found[:ANGLES].max() > 0.8 * found[:ANGLES].sum()
    velocity, acceleration = found[:ANGLES].sum(), found[14 : 14 + ANGLES].sum()
    assert acceleration < 0.35 * velocity
    jerky = FLOW(texture(6, 48, step=step)[None][:, [0, 0, 2, 2, 4, 4]])[0]
    assert jerky[14 : 14 + ANGLES].sum() > 0.8 * jerky[:ANGLES].sum()
