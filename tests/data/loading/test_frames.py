"""Packs of stored videos hold each clip's window at its planned rate and size, whoever loads them."""

from collections import Counter

import numpy as np
import pytest
import torch

from sora.data.index.index import Index
from sora.data.loading.frames import FramePacks, frame_clips
from sora.data.loading.quarantine import Quarantine
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Packed
from sora.data.plan.plan import TokenPlan
from sora.tokens import Grid
from sora.video.files import PYAV
from tests.data.making import dataset, flip

SHAPES = [(9, 32, 48)] * 4 + [(5, 48, 32)] * 3 + [(1, 64, 64)] * 2 + [(21, 32, 32)] * 2


@pytest.fixture
def made(tmp_path):
    return dataset(tmp_path / "set", SHAPES, fps=8.0)


def packs(folder, *, rate=None, areas=(1024, 1536), frames=None, share=0.5):
    index = Index.open(folder / "set")
    clips = frame_clips([index], areas=areas, rate=rate, stride=(4, 4, 4), patch=Grid(1, 1, 1))
    plan = TokenPlan(
        clips, filling=Packed(), cost=Cost(linear=1.0, quadratic=0.0), budget=400, max_clips=8, packs=2, accumulate=1, window=4,
        frames=frames, area=None, images=None, drop_long=False, curriculum=(), weights=None, width=None, seed=0,
    )  # fmt: skip
    return FramePacks([index], plan, quarantine=Quarantine(None, clips=len(index), max_share=share), reader=PYAV)


def test_a_pack_holds_the_planned_windows_of_its_clips(tmp_path, made):
    data = packs(tmp_path, frames=9)
    for step in range(3):
        for pack, planned in zip(data[step], data.plan.at(step).packs, strict=True):
            assert [clip.key for clip in pack] == [f"clip-{item.row:03d}" for item in planned.items]
            for clip, item in zip(pack, planned.items, strict=True):
                assert clip.frames.shape == (item.crop.frames, *item.size, 3)
                stored = made[clip.key][item.crop.start : item.crop.start + item.crop.frames]
                if stored.shape[1:3] == item.size:
                    assert np.array_equal(clip.frames, stored)


def test_every_clip_fills_its_part_of_the_budget(tmp_path, made):
    data, seen = packs(tmp_path), Counter()
    for step in range(8):
        for pack in data[step]:
            tokens = sum((1 + (len(clip.frames) - 1) // 4) * clip.frames.shape[1] * clip.frames.shape[2] // 16 for clip in pack)
            assert tokens <= 400
            seen.update(clip.key for clip in pack if clip.epoch == 0)
    assert seen == Counter(list(made))


def test_a_lower_rate_shows_fewer_frames_of_the_same_time(tmp_path, made):
    data = packs(tmp_path, rate=4.0)
    for pack, planned in zip(data[0], data.plan.at(0).packs, strict=True):
        for clip, item in zip(pack, planned.items, strict=True):
            assert clip.fps == 4.0
            stored = len(made[clip.key])
            assert len(clip.frames) == 1 + ((stored - 1) // 2) // 4 * 4
            if clip.frames.shape[1:3] == made[clip.key].shape[1:3]:
                assert np.array_equal(clip.frames, made[clip.key][::2][item.crop.start :][: len(clip.frames)])


def test_ranks_share_and_a_bad_clip_is_replaced(tmp_path, made):
    row = Index.open(tmp_path / "set").row(5)
    flip(tmp_path / "set" / row.shard, row.offset + row.size // 2)
    data = packs(tmp_path)
    for step in range(4):
        whole = data[step]
        for rank in range(2):
            for mine, theirs in zip(data.share(step, ranks=2, rank=rank), whole[rank::2], strict=True):
                assert [clip.key for clip in mine] == [clip.key for clip in theirs]
                assert all(torch.equal(one.frames, two.frames) for one, two in zip(mine, theirs, strict=True))
        assert "clip-005" not in {clip.key for pack in whole for clip in pack}
    assert data.quarantine.keys() == {"clip-005"}
