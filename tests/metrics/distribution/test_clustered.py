"""Windows of one video count as one video: what a resampling of clips gets wrong, and this does not."""

import numpy as np
import pytest
import torch

from sora.metrics.distribution.clustered import clustered_floor, clustered_interval, numbered
from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.distribution.resampling import frechet_interval

WINDOWS, VIDEOS, WIDTH = 4, 12, 3


def clips(seed, *, own=0.05, videos=VIDEOS):
    """Features of windows that lie by their video's place, and whose video each is of."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randn(videos, 1, WIDTH, generator=draw, dtype=torch.float64)
    found = places + own * torch.randn(videos, WINDOWS, WIDTH, generator=draw, dtype=torch.float64)
    return found.flatten(0, 1), np.repeat(np.arange(videos), WINDOWS)


def test_one_clip_a_video_is_the_bootstrap_of_clips():
    one, two = (torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    numbers = np.arange(30)
    low, high = clustered_interval(one, numbers, two, numbers, repeats=400, seed=0)
    usual = frechet_interval(one, two, repeats=400, seed=0)
    assert low == pytest.approx(usual[0], abs=0.15 * (usual[1] - usual[0])) and high == pytest.approx(usual[1], rel=0.1)


def test_windows_of_few_videos_do_not_make_an_interval_narrow():
    """Each window is its video but for a little: the interval is that of the videos, twice as wide as the clips' at four windows."""
    one, videos = clips(0)
    two, _ = clips(1)
    low, high = clustered_interval(one, videos, two, videos, repeats=300, seed=0)
    narrow = frechet_interval(one, two, repeats=300, seed=0)
    alone = clustered_interval(one[::WINDOWS], videos[::WINDOWS], two[::WINDOWS], videos[::WINDOWS], repeats=300, seed=0)
    assert high - low > 1.5 * (narrow[1] - narrow[0]) and high - low == pytest.approx(alone[1] - alone[0], rel=0.25)
    assert low <= frechet_distance(one, two) <= high


def test_which_numbers_videos_have_and_in_which_order_clips_come_is_nothing():
    one, videos = clips(2)
    two, _ = clips(3)
    order = np.random.default_rng(0).permutation(len(one))
    first = clustered_floor(one, videos, two, videos, repeats=40, seed=0)
    names = numbered([f"video {number:02d}" for number in videos])
    assert (names == videos).all() and first == clustered_floor(one, names, two, names, repeats=40, seed=0)
    again = clustered_floor(one[order], videos[order], two, videos, repeats=40, seed=0)
    assert again == pytest.approx(first, rel=1e-9)


@pytest.mark.slow
def test_p_is_honest_by_videos_and_not_by_clips():
    """Of 40 pairs of sets that do not differ few are told to; a split of clips tells more than half of them (measured: 0.07 and 0.85)."""
    by_videos, by_clips, over = [], [], []
    for seed in range(40):
        one, videos = clips(2 * seed + 100)
        two, _ = clips(2 * seed + 101)
        floor, p = clustered_floor(one, videos, two, videos, repeats=39, seed=seed)
        by_videos.append(p)
        over.append(frechet_distance(one, two) / floor)
        by_clips.append(clustered_floor(one, np.arange(len(one)), two, np.arange(len(two)), repeats=39, seed=seed)[1])
    assert np.mean(np.array(by_videos) <= 0.05) <= 0.15 and np.mean(np.array(by_clips) <= 0.05) > 0.5
    assert np.mean(over) == pytest.approx(1, abs=0.25)


def test_one_video_has_no_interval():
    one, _ = clips(0)
    with pytest.raises(ValueError, match="48 clips of one video have no interval"):
        clustered_interval(one, np.zeros(len(one), dtype=int), one, np.arange(len(one)), repeats=40, seed=0)
