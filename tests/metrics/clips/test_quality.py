"""Scores without references, each against its formula written out, its closed forms, and what must lower it."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sora.metrics.clips.picture import PICTURE
from sora.metrics.clips.quality import (
    IN_TIME,
    VideoQuality,
    consistency,
    dynamic_degree_lite,
    motion_smoothness_lite,
    temporal_flickering,
    text_similarity,
    vbench_name,
    warping_error,
)
from tests.metrics.clips.test_flow import texture
from tests.metrics.ranks import on_two_ranks

DRAW = torch.Generator().manual_seed(0)
NOISE = torch.randint(0, 256, (3, 3, 16, 18, 3), dtype=torch.uint8, generator=DRAW)  # videos == frames == channels


def drifting(pixels, frames=7, sides=(32, 40)):
    """A texture that moves across by `pixels` a frame, uint8 (1, T, H, W, 3)."""
    video = torch.stack([texture(*sides, across=pixels * frame)[0, 0] for frame in range(frames)])
    return (video[None, ..., None].expand(1, -1, -1, -1, 3) * 255).round().to(torch.uint8)


def test_flickering_is_vbench_s_formula():
    """(255 - the mean over pairs of the mean absolute difference) / 255, per video."""
    for video, found in zip(NOISE, temporal_flickering(NOISE).tolist(), strict=True):
        pairs = [(one.int() - two.int()).abs().double().mean() for one, two in pairwise(video)]
        assert found == pytest.approx(float((255 - sum(pairs) / len(pairs)) / 255), rel=1e-6)
    blinking = torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8)
    blinking[:, 1::2] = 255
    assert float(temporal_flickering(blinking)) == 0 and float(temporal_flickering(blinking[:, ::2])) == 1


def test_consistency_is_vbench_s_formula():
    states = torch.randn(2, 5, 4, generator=DRAW)
    for video, found in zip(states, consistency(states).tolist(), strict=True):
        terms = [
            (max(0.0, float(cosine_similarity(video[t], video[t - 1], 0))) + max(0.0, float(cosine_similarity(video[t], video[0], 0)))) / 2
            for t in range(1, 5)
        ]
        assert found == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert float(consistency(torch.ones(1, 3, 2))) == pytest.approx(1)
    assert float(consistency(torch.tensor([[[1.0, 0], [-1, 0], [1, 0]]]))) == pytest.approx(0.25)  # opposite counts 0, not -1
    assert torch.allclose(consistency(states), consistency(7 * states))


def test_text_similarity_is_a_mean_of_cosines_with_its_own_caption():
    states, captions = torch.randn(3, 3, 3, generator=DRAW), torch.randn(3, 3, generator=DRAW)  # videos == frames == dimensions
    for video, caption, found in zip(states, captions, text_similarity(states, captions).tolist(), strict=True):
        assert found == pytest.approx(sum(float(cosine_similarity(frame, caption, 0)) for frame in video) / 3, abs=1e-6)
    assert text_similarity(captions[:, None].expand(3, 2, 3), -captions).tolist() == pytest.approx([-1] * 3)
    with pytest.raises(ValueError, match="of one model"):
        text_similarity(states, captions[:2])


def test_files_are_named_as_vbench_reads_them():
    assert vbench_name("a person swimming in ocean", 3) == "a person swimming in ocean-3.mp4"
    for prompt in ("and/or", "", "x" * 252):
        with pytest.raises(ValueError, match="cannot be part of a file name"):
            vbench_name(prompt, 0)


def test_smoothness_measures_what_lies_between_neighbours():
    ramp = torch.arange(5, dtype=torch.uint8).mul(20).view(1, 5, 1, 1, 1).expand(1, 5, 6, 6, 3)
    assert float(motion_smoothness_lite(ramp)) == 1
    jump = ramp.clone()
    jump[:, 3] += 51  # a fifth of the range, in one of the two frames that are guessed
    assert float(motion_smoothness_lite(jump)) == pytest.approx(1 - 0.2 / 2)
    assert float(motion_smoothness_lite(torch.cat([ramp, 255 - ramp[:, :1]], dim=1))) == 1  # the even frame beyond guesses nothing


def test_the_dynamic_degree_separates_still_slow_and_fast():
    limit = 6 * 32 / 256  # pixels a frame
    assert dynamic_degree_lite(drifting(0), fps=8).tolist() == [0]
    assert dynamic_degree_lite(drifting(0.4 * limit), fps=8).tolist() == [0]
    assert dynamic_degree_lite(drifting(2 * limit), fps=8).tolist() == [1]
    # a pan at half the threshold: its flow runs away only where pixels leave the frame
    for half in (drifting(0.5 * limit), drifting(0.5 * limit).transpose(2, 3)):
        assert dynamic_degree_lite(half, fps=8).tolist() == [0]
    # the same motion filmed three times as often
    assert dynamic_degree_lite(drifting(0.7 * limit, frames=10), fps=24).tolist() == [1]


def test_warping_error_is_of_what_motion_does_not_explain():
    steady, flicker = drifting(1.5), drifting(1.5)
    flicker[:, 1::2] = (flicker[:, 1::2].float() * 0.8).round().to(torch.uint8)
    unlike = torch.cat([steady[:, :3], drifting(1.5).flip(2)[:, :4]], dim=1)
    smooth = float(warping_error(steady))
    assert smooth < 5e-4 and float(warping_error(flicker)) > 10 * smooth and float(warping_error(unlike)) > 5 * smooth
    assert float(warping_error(drifting(0))) < 1e-12


class Means:
    """An encoder for tests: each frame's mean colour, and one."""

    name = "means-1"

    def encode_frames(self, videos):
        return torch.cat([videos.float().mean(dim=(2, 3)), torch.ones(*videos.shape[:2], 1)], dim=2)


CLIPS = [drifting(0), drifting(1.5), NOISE[:1], NOISE[:2, :2], NOISE[:1, :1]]


def fed(clips):
    metric = VideoQuality(encoders={"subject": Means()})
    for clip in clips:
        metric.update(clip, fps=8)
    return metric


def _rank(rank):
    return fed([CLIPS[:4], CLIPS[4:]][rank]).compute()


@pytest.mark.slow
def test_the_class_gives_means_over_videos_of_any_length_on_any_ranks():
    found = fed(CLIPS).compute()
    flicker = torch.cat([temporal_flickering(clip) for clip in CLIPS[:4]])
    assert found["n"] == 6 and found["temporal_flickering"] == pytest.approx(float(flicker.mean()))
    smooth = torch.cat([motion_smoothness_lite(clip) for clip in CLIPS[:3]])
    assert found["motion_smoothness_lite"] == pytest.approx(float(smooth.mean()))
    assert set(found) == {
        *IN_TIME, *PICTURE, "subject_consistency/means-1", "n"
    }  # fmt: skip
    for ranks in on_two_ranks(_rank):
        assert ranks == pytest.approx(found)
    images = fed(CLIPS[4:]).compute()
    assert set(images) == {*PICTURE, "n"}  # nothing is said of what was not measured


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="videos of 1 frame; this score needs at least 2"):
        temporal_flickering(NOISE[:, :1])
    with pytest.raises(ValueError, match="give uint8"):
        warping_error(NOISE[:0])
    with pytest.raises(ValueError, match="fps=0"):
        dynamic_degree_lite(NOISE, fps=0)
    with pytest.raises(ValueError, match="at least 2 frames"):
        consistency(torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="no video was given"):
        VideoQuality(encoders={}).compute()
