"""Cheap scores on clips whose answers are known by construction, and what must leave them as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from itertools import islice, repeat
from pathlib import Path

import cv2
import numpy as np
import pytest

import sora
from sora.curation.scores.cheap import SHORT, analysis_size, cheap_scores
from sora.curation.scores.table import CHEAP_SCORES
from sora.curation.spans import Span
from sora.gate.confine import confine
from sora.video.files import Shown
from tests.curation.clips import HEIGHT, WIDTH, panned, scores, shown, texture

CHECKOUT = Path(sora.__file__).resolve().parent.parent


def barred(frames: np.ndarray, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, shade: int = 0) -> np.ndarray:
    frames = frames.copy()
    height, width = frames.shape[1:3]
    for part in (np.s_[:, :top], np.s_[:, height - bottom :], np.s_[:, :, :left], np.s_[:, :, width - right :]):
        frames[part] = shade
    return frames


def test_every_score_of_the_table_is_measured_and_lies_in_its_range() -> None:
    clips = [panned(20), np.zeros((20, 64, 48, 3), np.uint8), np.full((1, 40, 90, 3), 255, np.uint8)]
    clips.append(np.random.default_rng(0).integers(0, 256, (20, 144, 192, 3), np.uint8))
    for frames in clips:
        found = scores(frames)
        assert set(found) == set(CHEAP_SCORES)
        assert all(type(value) is float and 0 <= value <= CHEAP_SCORES[name].high for name, value in found.items()), found


def test_bars_have_their_size_whatever_their_black() -> None:
    found = scores(barred(panned(30), top=18, bottom=18, shade=3))
    assert (found["letterbox"], found["pillarbox"]) == (36 / HEIGHT, 0)
    found = scores(barred(panned(30), left=32, right=32, shade=16))
    assert (found["letterbox"], found["pillarbox"]) == (0, 64 / WIDTH)
    found = scores(barred(panned(30), top=9, bottom=9, left=20, right=20))
    assert (found["letterbox"], found["pillarbox"]) == (18 / HEIGHT, 40 / WIDTH)
    assert scores(barred(panned(30), top=12))["letterbox"] == 12 / HEIGHT


def test_a_dark_scene_has_no_bars_and_keeps_the_ones_it_has() -> None:
    dark = panned(30) // 12
    assert scores(dark)["letterbox"] == scores(dark)["pillarbox"] == 0
    assert abs(scores(barred(dark, top=18, bottom=18))["letterbox"] - 0.25) < 0.02
    night = np.zeros((30, HEIGHT, WIDTH, 3), np.uint8)
    night[:, 90:] = panned(30)[:, 90:] // 4 * np.linspace(0, 1, HEIGHT - 90)[:, None, None].astype(np.float32)
    night[:, 40, ::37] = 200  # stars
    assert scores(night)["letterbox"] == 0
    assert scores(np.zeros_like(night))["letterbox"] == 0


def test_bars_do_not_change_exposure_and_sharpness_of_what_lies_within() -> None:
    plain, whole = scores(panned(30)[:, 20:-20]), scores(barred(panned(30), top=20, bottom=20))
    for name in ("luma", "clipped_black", "clipped_white", "sharpness"):
        assert whole[name] == pytest.approx(plain[name], rel=0.08, abs=0.002), name


def test_a_coloured_frame_is_border_and_no_bar() -> None:
    found = scores(barred(panned(30), top=12, bottom=12, left=16, right=16, shade=200))
    assert found["letterbox"] == found["pillarbox"] == 0
    assert found["border"] == pytest.approx(1 - (120 * 224) / (HEIGHT * WIDTH), abs=0.01)
    assert scores(panned(30))["border"] == 0


def test_a_still_scene_around_something_that_moves_is_no_border() -> None:
    frames = np.repeat(texture()[None], 30, 0)
    frames[:, 50:100, 80:180] = panned(30, seed=1)[:, 50:100, 80:180]
    assert scores(frames)["border"] == 0


def with_logo(frames: np.ndarray) -> np.ndarray:
    frames = frames.copy()
    mark = np.zeros((24, 48, 3), np.uint8)
    mark[::6], mark[:, ::8] = 255, 255
    frames[:, 10:34, -60:-12] = mark
    return frames


def test_a_logo_over_a_moving_picture_is_found_and_a_moving_picture_has_none() -> None:
    assert scores(with_logo(panned(60, pixels=4)))["logo"] == pytest.approx(24 * 48 / (HEIGHT * WIDTH), rel=0.35)
    assert scores(panned(60, pixels=4))["logo"] < 0.001
    assert scores(np.repeat(texture()[None], 60, 0))["logo"] == 0


def test_exposure_is_that_of_the_pixels() -> None:
    frames = np.full((13, HEIGHT, WIDTH, 3), 51, np.uint8)
    frames[:, :, : WIDTH // 4] = 255
    frames[:, :, -WIDTH // 8 :] = 0
    found = scores(frames)
    # The black part is a bar.
    assert found["clipped_white"] == pytest.approx(2 / 7)
    assert found["luma"] == pytest.approx((2 + 0.2 * 5) / 7)
    assert (found["pillarbox"], found["clipped_black"]) == (1 / 8, 0)


def test_blur_lowers_sharpness_and_size_does_not_change_it() -> None:
    frames = panned(26, pixels=4, height=288, width=512)
    values = [scores(np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in frames]))["sharpness"] for blur in (0.5, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 20 * values[-1]
    double = np.stack([cv2.resize(frame, (1024, 576), interpolation=cv2.INTER_CUBIC) for frame in frames])
    assert scores(double)["sharpness"] == pytest.approx(scores(frames)["sharpness"], rel=0.15)


@pytest.mark.parametrize("at", [1, 20, 57])
def test_a_flash_is_as_large_as_its_jump_wherever_it_is(at: int) -> None:
    frames = np.repeat(texture()[None] // 2, 60, 0)
    frames[at : at + 2] += 80
    assert scores(frames)["flash"] == pytest.approx(80 / 255, abs=0.003)


def test_a_strobe_flashes_and_a_change_that_stays_or_is_slow_does_not() -> None:
    strobe = np.repeat(texture()[None] // 2, 60, 0)
    strobe[::2] += 80
    assert scores(strobe)["flash"] == pytest.approx(80 / 255, abs=0.003)
    step = np.repeat(texture()[None] // 2, 60, 0)
    step[30:] += 80
    assert scores(step)["flash"] < 0.003
    slow = np.stack([texture() // 2 + int(40 + 40 * np.sin(t / 12)) for t in range(100)]).astype(np.uint8)
    assert scores(slow)["flash"] < 0.1


def test_frozen_and_repeated_frames_are_counted() -> None:
    moving = panned(72)
    frozen = np.concatenate([moving[:24], np.repeat(moving[24:25], 24, 0), moving[25:49]])
    found = scores(frozen)
    assert (found["frozen"], found["repeated"]) == (24 / 72, 0)
    twos = np.repeat(moving[:30], 2, 0)
    found = scores(twos)
    assert (found["frozen"], found["repeated"]) == (0, 0.5)
    assert scores(moving)["repeated"] == 0


def test_a_small_thing_that_moves_keeps_a_clip_from_being_frozen() -> None:
    frames = np.full((48, 64, 64, 3), 128, np.uint8)
    for t in range(48):
        frames[t, 30:33, t : t + 3] = 255
    assert scores(frames)["frozen"] == 0


def pulled(film: np.ndarray, *, fields: bool) -> np.ndarray:
    """3:2 pulldown: five frames for four, by mixing fields (seen here as means of two frames) or by repeating one."""
    made = []
    for a, b, c, d in film[: len(film) // 4 * 4].reshape(-1, 4, *film.shape[1:]):
        mixes = [((x.astype(int) + y) // 2).astype(np.uint8) for x, y in ((b, c), (c, d))]
        made += [a, b, *mixes, d] if fields else [a, b, b, c, d]
    return np.stack(made)


def test_pulldown_shows_its_period_and_other_repetition_does_not() -> None:
    film = panned(96)
    assert scores(pulled(film, fields=False), 30)["telecine"] > 0.95
    assert scores(pulled(film, fields=True), 30)["telecine"] > 0.8
    assert scores(film)["telecine"] < 0.05
    assert scores(np.repeat(film[:48], 2, 0))["telecine"] < 0.05
    chosen = np.random.default_rng(0).uniform(size=len(film)) < 0.2  # a fifth of the frames repeated at random
    assert scores(np.repeat(film, 1 + chosen, 0), 30)["telecine"] < 0.25


@pytest.mark.parametrize("pixels", [1, 3, -5])
def test_a_pan_has_its_speed_and_nothing_moves_within_it(pixels: int) -> None:
    frames = panned(48, pixels=abs(pixels))
    found = scores(frames if pixels > 0 else frames[:, :, ::-1])
    assert found["camera_motion"] == pytest.approx(abs(pixels) * 24 / SHORT, rel=0.1)
    assert found["object_motion"] < 0.1 * found["camera_motion"]


def test_an_object_that_moves_is_no_camera() -> None:
    frames = np.repeat(texture()[None], 48, 0)
    for t in range(48):
        frames[t, 40:100, 20 + 3 * t : 80 + 3 * t] = texture(60, 60, seed=5)
    found = scores(frames)
    assert found["object_motion"] == pytest.approx(3 * 24 / SHORT * 60 * 60 / (HEIGHT * WIDTH), rel=0.5)
    assert found["camera_motion"] < 0.3 * found["object_motion"]


def test_nothing_moves_in_a_still_picture() -> None:
    found = scores(np.repeat(texture()[None], 30, 0))
    assert (found["camera_motion"], found["object_motion"], found["noise"], found["frozen"]) == (0, 0, 0, 1)


def lettered(frames: np.ndarray, lines: list[str], scale: float) -> tuple[np.ndarray, float]:
    """White text with a black rim, and the share of the picture in its boxes."""
    frames, share = frames.copy(), 0.0
    for number, line in enumerate(lines):
        (width, height), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 6)
        place = ((frames.shape[2] - width) // 2, frames.shape[1] - 60 - int(1.9 * number * height))
        for frame in frames:
            cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 10, cv2.LINE_AA)
            cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 6, cv2.LINE_AA)
        share += width * height / (frames.shape[1] * frames.shape[2])
    return frames, share


@pytest.mark.parametrize(("lines", "scale"), [(["two words"], 2.5), (["a line of text that is long", "and a second line below"], 2.0)])
def test_drawn_text_takes_about_the_share_of_its_boxes(lines: list[str], scale: float) -> None:
    large = np.stack([cv2.resize(frame, (1280, 720)) for frame in panned(13)])
    frames, share = lettered(large, lines, scale)
    assert scores(frames)["text"] == pytest.approx(share, rel=0.5)
    assert scores(large)["text"] < 0.002


def test_noise_is_measured_in_grey_levels() -> None:
    rng = np.random.default_rng(0)
    soft = np.repeat(cv2.GaussianBlur(texture(), (0, 0), 8)[None], 30, 0).astype(float)
    for deviation in (1.0, 3.0):
        noisy = np.clip(np.rint(soft + rng.normal(0, deviation, (*soft.shape[:3], 1))), 0, 255).astype(np.uint8)
        assert scores(noisy)["noise"] == pytest.approx(deviation, rel=0.15)


def test_a_mirrored_clip_has_the_same_scores() -> None:
    frames = with_logo(barred(panned(48, pixels=3), top=10, bottom=10, left=20))
    frames[20] += 40
    plain, turned = scores(frames), scores(frames[:, :, ::-1])
    for name, value in plain.items():
        near = name in ("camera_motion", "object_motion", "text", "logo")
        assert turned[name] == pytest.approx(value, rel=0.1 if near else 1e-6, abs=0.01 if near else 1e-9), name


def test_a_span_does_not_see_its_neighbours() -> None:
    frames = np.concatenate([panned(40), texture(seed=9)[None].repeat(7, 0), panned(33, pixels=4, seed=2)])
    parts = [Span(0, 40), Span(47, 80)]
    together = list(cheap_scores(shown(frames), parts, fps=24))
    for span, one in zip(parts, together, strict=True):
        alone = next(cheap_scores(shown(frames[span.first : span.end]), [Span(0, len(span))], fps=24))
        assert one.span == span
        assert one.scores == pytest.approx(alone.scores, abs=1e-12)
        assert (one.signature.hashes == alone.signature.hashes).all()
        assert (one.signature.pictures == alone.signature.pictures).all()


def test_spans_that_overlap_or_pass_the_end_are_refused() -> None:
    with pytest.raises(ValueError, match="begins before frame 10"):
        list(cheap_scores(shown(panned(20)), [Span(0, 10), Span(5, 15)], fps=24))
    with pytest.raises(ValueError, match="reaches past the video, of which 20 frames came"):
        list(cheap_scores(shown(panned(20)), [Span(5, 21)], fps=24))
    with pytest.raises(ValueError, match="is empty"):
        list(cheap_scores(shown(panned(20)), [Span(5, 5)], fps=24))


def test_frames_are_taken_at_144_pixels_and_never_enlarged() -> None:
    assert analysis_size(720, 1280) == (144, 256)
    assert analysis_size(1280, 720) == (256, 144)
    assert analysis_size(64, 36) == (64, 36)
    with pytest.raises(ValueError, match="more than 32 times"):
        analysis_size(1, 100_000)


def test_scores_are_the_same_in_a_confined_child() -> None:
    frames = panned(30)
    expected = scores(frames)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            confine()
            status = 0 if scores(frames) == expected else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20), (3, 90), (16, 16), (145, 31), (144, 2000), (200, 144)])
def test_frames_of_any_size_are_scored(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (14, height, width, 3), np.uint8)
    thin = np.zeros_like(noise)
    thin[:, height // 2] = 255
    for frames in (noise, thin, thin.swapaxes(1, 2)):
        found = next(cheap_scores(shown(frames), [Span(0, 14)], fps=24))
        assert all(np.isfinite(value) and 0 <= value <= CHEAP_SCORES[name].high for name, value in found.scores.items())
        assert len(found.signature.pictures) == 2


def peak(frames: int, spans: int) -> int:
    """The most bytes that Python held at once while a film of so many frames was scored in so many spans."""
    picture = texture(48, 64)
    film = (Shown(picture, number / 24, True) for number, picture in enumerate(repeat(picture, frames)))
    each = frames // spans
    tracemalloc.start()
    for _ in islice(cheap_scores(film, (Span(i * each, (i + 1) * each) for i in range(spans)), fps=24), spans):
        pass
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


@pytest.mark.slow
def test_memory_grows_with_signatures_only() -> None:
    # In a process of its own: other threads of this one are counted, too. The first calls fill Python's lists of free objects.
    calls = "[peak(*of) for of in ((4800, 200), (4800, 200), (300, 1), (1200, 1), (1200, 50), (4800, 200))]"
    code = f"import gc; from {__name__} import peak; gc.disable(); print({calls})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    _, _, short, long, some, many = json.loads(done.stdout)
    pictures = (1200 - 300) / 24 * 2
    assert long < short + 1200 * pictures  # of which 408 are the signature and the rest Python's objects
    assert many < some + 25_000  # the scores and signatures of 150 clips of a second would take twelve times as much
