"""Laws of picture quality on real clips: worse with every step of a ladder of blur, codec, noise and exposure; and closed forms."""

import io
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from scipy import ndimage

from sora.metrics.clips.flow import GREY
from sora.metrics.clips.picture import BLOCK, PICTURE, blockiness, brightness, clipped, noise_level, sharpness
from sora.metrics.clips.quality import IN_TIME, VideoQuality, motion_smoothness_lite, temporal_flickering, warping_error
from sora.quickstart import real_videos

PLACES = {"bigbuckbunny.mp4": (10, 100), "bikes.mp4": (60, 150)}  # frames from which a clip is taken


def taken(path, starts, frames=4):
    found, wanted = {}, {start + number for start in starts for number in range(frames)}
    with av.open(str(path)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")[:128, :176]
            if number >= max(wanted):
                break
    return [np.stack([found[start + number] for number in range(frames)]) for start in starts]


@pytest.fixture(scope="module")
def clips():
    """Real ones, (T, H, W, 3): two places each of two videos."""
    return [clip for name, starts in PLACES.items() for clip in taken(real_videos() / name, starts)]


def score(measured, frames):
    return float(measured(torch.from_numpy(np.ascontiguousarray(frames))[None]))


def rounded(frames):
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def coded(frames, codec, step, **options):
    """Through a codec. step: its quantiser, or x264's crf."""
    file, mp4 = io.BytesIO(), codec == "libx264"
    with av.open(file, "w", format="mp4" if mp4 else "avi") as made:
        stream = made.add_stream(codec, rate=8, options={**({"crf": str(step)} if mp4 else {}), **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        if not mp4:
            stream.codec_context.qmin = stream.codec_context.qmax = step
        for picture in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        made.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as read:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in read.decode(video=0)])


def blurred(frames, sigma):
    return rounded(ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0)))


def noisy(frames, sigma):
    return rounded(frames + np.random.default_rng(0).normal(0, sigma, frames.shape))


def falls(values):
    return all(one > two for one, two in pairwise(values))


@pytest.mark.slow
def test_sharpness_falls_with_blur_and_a_deblocking_codec_takes_grain_and_sharpness(clips):
    for clip in clips:
        assert falls([score(sharpness, blurred(clip, sigma)) for sigma in (0, 0.5, 1, 2)])
        decoded = [coded(clip, "libx264", crf) for crf in (18, 26, 34, 42, 50)]
        grain = [score(noise_level, frames) for frames in decoded]
        assert grain == sorted(grain, reverse=True) and grain[-1] < 0.5 * grain[0]
        assert max(score(sharpness, frames) for frames in decoded[2:]) < score(sharpness, clip)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "steps", "options"),
    [("mjpeg", (2, 6, 12, 24), {}), ("mpeg4", (2, 8, 16, 31), {}), ("libx264", (26, 34, 42, 50), {"x264-params": "no-deblock=1"})],
)
def test_blockiness_rises_with_every_codec_that_leaves_its_borders(clips, codec, steps, options):
    for clip in clips:
        found = [score(blockiness, clip), *(score(blockiness, coded(clip, codec, step, **options)) for step in steps)]
        assert falls(found[::-1]) and abs(found[0]) < 0.1


@pytest.mark.slow
def test_noise_level_is_the_noise_that_was_added(clips):
    weights = float(np.sqrt(np.square(GREY).sum()))  # what is left in luma of independent noise in three colours
    for clip in clips:
        clean = score(noise_level, blurred(clip, 1))
        found = [score(noise_level, noisy(blurred(clip, 1), sigma)) for sigma in (4, 8, 16)]
        assert falls([*found[::-1], clean]) and clean < 1
        assert found == pytest.approx([4 * weights, 8 * weights, 16 * weights], rel=0.12)


@pytest.mark.slow
def test_exposure_shows_in_brightness_and_clipped_pixels(clips):
    for clip in clips:
        gains = (0.125, 0.25, 0.5, 1, 2)
        assert falls([score(brightness, rounded(clip * float(gain))) for gain in gains[::-1]])
        over = [score(clipped, rounded(clip * float(gain))) for gain in (1, 2, 4, 8)]
        under = [score(clipped, rounded(clip * float(gain))) for gain in (0.5, 0.125, 0.03125)]
        for found in (over, under):
            assert found == sorted(found) and found[0] < 0.05 and found[-1] > 0.5, found


@pytest.mark.slow
def test_what_steadiness_in_time_rewards_is_told_by_the_picture(clips):
    """The reason for these: blur improves every score of time, and sharpness alone falls."""
    for clip in clips:
        soft = blurred(clip, 2)
        assert score(temporal_flickering, soft) > score(temporal_flickering, clip)
        assert score(motion_smoothness_lite, soft) > score(motion_smoothness_lite, clip)
        assert score(warping_error, soft) < score(warping_error, clip)
        assert score(sharpness, soft) < 0.9 * score(sharpness, clip)


def test_closed_forms():
    flat = torch.full((2, 3, 24, 40, 3), 90, dtype=torch.uint8)
    for name, value in {"sharpness": 0, "blockiness": 0, "noise_level": 0, "brightness": 90 / 255, "clipped": 0}.items():
        assert PICTURE[name](flat).tolist() == pytest.approx([value] * 2, abs=1e-6), name
    tiles = np.random.default_rng(0).integers(20, 230, (1, 1, 3, 5, 1)).repeat(BLOCK, 2).repeat(BLOCK, 3).repeat(3, 4)
    assert float(blockiness(torch.from_numpy(tiles.astype(np.uint8)))) == pytest.approx(1)
    cropped = np.ascontiguousarray(tiles[:, :, 3:, 3:]).astype(np.uint8)
    assert float(blockiness(torch.from_numpy(cropped))) == pytest.approx(-1)  # all its borders lie elsewhere
    half = flat.clone()
    half[:, :, :12] = 255
    half[:, 2] = 0
    assert clipped(half).tolist() == pytest.approx([(0.5 + 0.5 + 1) / 3] * 2)
    assert brightness(half[:, 2:]).tolist() == [0, 0]


def test_an_edge_and_a_ramp_are_no_noise():
    edge = np.zeros((1, 1, 32, 32, 3), dtype=np.uint8)
    edge[..., 16:, :] = 200
    ramp = np.broadcast_to(np.arange(0, 192, 6, dtype=np.uint8)[:, None], (1, 1, 32, 32, 3))
    assert float(noise_level(torch.from_numpy(edge))) == 0 and float(noise_level(torch.from_numpy(ramp.copy()))) < 1e-4


@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (2, 7), (3, 3), (9, 8)])
def test_the_smallest_pictures_have_a_score_or_are_refused(sides):
    video = torch.randint(0, 256, (1, 2, *sides, 3), dtype=torch.uint8)
    for name, measured in PICTURE.items():
        if min(sides) < 2 and name in ("sharpness", "blockiness"):
            with pytest.raises(ValueError, match=r"sides from 2"):
                measured(video)
        else:
            assert np.isfinite(float(measured(video)))


@pytest.mark.slow
def test_the_metric_gives_a_picture_s_scores_of_single_frames_too(clips):
    metric = VideoQuality(encoders={})
    metric.update(torch.from_numpy(clips[0][:1])[None], fps=8)
    found = metric.compute()
    assert set(found) == {*PICTURE, "n"} and found["sharpness"] == pytest.approx(score(sharpness, clips[0][:1]))
    metric.update(torch.from_numpy(clips[1])[None], fps=8)
    assert set(metric.compute()) == {*PICTURE, *IN_TIME, "n"}
