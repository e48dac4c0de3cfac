"""Sizes by area on a ladder: nothing stretched, nothing enlarged, any duration, windows that lie anywhere in their clip."""

import numpy as np
import pytest

from sora.data.plan.clips import ClipLimits
from sora.data.plan.frames import FrameClips, VideoColumns
from sora.data.plan.report import figures, lines
from sora.patches.geometry import Geometry
from tests.data.plan.making import plan

RNG = np.random.default_rng(0)
COUNT = 400
COLUMNS = VideoColumns(
    RNG.integers(1, 200, COUNT), RNG.integers(40, 1200, COUNT), RNG.integers(40, 1200, COUNT), RNG.choice([8.0, 12.5, 24.0, 30.0], COUNT)
)
FREE = ClipLimits()
LADDER = [64 * 64, 128 * 128, 256 * 256]


def clips(columns=COLUMNS, *, areas=LADDER, rate=12.0, stride=(4, 8, 8), patch=(1, 2, 2)):
    return FrameClips([columns], areas=areas, rate=rate, geometry=Geometry(stride, patch), fingerprint="f", key=str)


def cuts(of, limits=FREE, *, epoch=0):
    rows = np.flatnonzero(of.measured(np.arange(COUNT), limits).reasons == 0)
    return rows, of.cut(rows, np.full(len(rows), epoch), limits, seed=0)


def test_a_clip_keeps_its_aspect_and_gets_the_largest_step_it_has():
    rows, found = cuts(clips())
    assert len(rows) > 300
    for row, (crop, (height, width)) in zip(rows, found, strict=True):
        high, wide = COLUMNS.heights[row], COLUMNS.widths[row]
        assert height % 16 == width % 16 == 0 and height <= high and width <= wide
        area = max(step for step in LADDER if step <= high * wide)
        scale = np.sqrt(area / (high * wide))
        assert abs(height - high * scale) <= 16 and abs(width - wide * scale) <= 16
        assert (crop.height, crop.width) == (high, wide)


def test_durations_are_their_own_and_windows_lie_inside():
    of = clips(patch=(2, 2, 2))
    for limits in (ClipLimits(), ClipLimits(frames=25)):
        rows, found = cuts(of, limits)
        grids = of.measured(rows, limits).grids
        for row, (crop, _), grid in zip(rows, found, grids, strict=True):
            fps = min(12.0, COLUMNS.fps[row])
            assert crop.start >= 0 and (crop.start + crop.frames - 1) / fps <= (COLUMNS.frames[row] - 1) / COLUMNS.fps[row] + 1e-6
            assert crop.frames == 1 + (2 * grid[0] - 1) * 4
            assert limits.frames is None or crop.frames <= limits.frames
    assert len({crop.frames for crop, _ in cuts(of)[1]}) > 10, "no table of durations"


def test_windows_are_drawn_anew_each_epoch_and_nowhere_else():
    one, again, other = (cuts(clips(), ClipLimits(frames=9), epoch=epoch)[1] for epoch in (0, 0, 1))
    assert one == again and one != other
    starts = np.array([crop.start for crop, _ in one])
    assert len(set(starts.tolist())) > 30


def test_small_and_short_clips_are_left_out_by_reason():
    columns = VideoColumns(np.array([20, 3, 20]), np.array([30, 300, 300]), np.array([30, 300, 300]), np.full(3, 8.0))
    made = plan(clips(columns, patch=(2, 2, 2)), budget=4000)
    assert made.skipped == {"smaller than the smallest of data.areas": 1, "shorter than one patch": 1}
    (item,) = made.at(0).packs[0].items
    assert (item.row, item.size, item.crop.frames) == (2, (256, 256), 13)


def test_a_curriculum_of_sizes_lifts_the_ladder():
    columns = VideoColumns(*(np.full(64, value) for value in (1, 300, 300)), np.full(64, 8.0))
    made = plan(
        clips(columns), budget=256, packs=1, window=4, curriculum=({"until": 64, "area": 64 * 64}, {"until": 96, "area": 128 * 128})
    )
    items = [item for step in range(60) for item in made.at(step).items]
    assert [item.size[0] for item in items] == [64] * 64 + [128] * 32 + [256] * (len(items) - 96)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one area in pixels"):
        clips(areas=[])
    with pytest.raises(ValueError, match="not above 0"):
        clips(rate=0.0)


def test_frames_that_stand_over_are_told_and_not_called_kept():
    """12 frames give a window of 9 under stride 4, and 24 one of 21."""
    columns = VideoColumns(np.array([12, 24, 9]), np.full(3, 300), np.full(3, 300), np.full(3, 8.0))
    for frames, kept in ((None, 9 + 21 + 9), (12, 9 + 9 + 9)):
        made = plan(clips(columns), budget=20000, frames=frames)
        found = figures(made, ranks=[1], windows=None)
        assert found.frames_kept == pytest.approx(kept / 45)
        (told,) = [line for line in lines(made, found) if "kept" in line]
        assert f"{kept / 45:.1%} of all frames" in told if frames else "86.67%; the rest does not fill a latent frame" in told


def test_an_empty_epoch_says_which_key_empties_it():
    columns = VideoColumns(np.array([20]), np.array([300]), np.array([300]), np.full(1, 8.0))
    with pytest.raises(ValueError, match=r"plan\.area=100 \(1 plan\.area allows none of data\.areas\); change the key"):
        plan(clips(columns), area=100)
    with pytest.raises(ValueError, match=r"1 smaller than the smallest of data\.areas\); change the key"):
        plan(clips(columns._replace(heights=np.array([30]), widths=np.array([30]))))
    with pytest.raises(ValueError, match="longer than the token budget of 5.*; raise plan.budget"):
        plan(clips(columns), budget=5)
