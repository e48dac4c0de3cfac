"""Packs: what stands where."""

import pytest
import torch

from sora.patches.packing import frame_times, pack, patch_times, unpack
from sora.tokens import Grid

GRIDS = (Grid(2, 2, 3), Grid(1, 2, 2), Grid(4, 1, 1))


def clips(channels=4):
    return [torch.randn(grid.tokens, channels) for grid in GRIDS]


def seconds():
    return [frame_times(grid.t, fps=8.0, stride=4) for grid in GRIDS]


def test_pack_and_unpack_are_inverse_at_any_budget():
    for budget, max_clips in ((20, 3), (21, 4), (64, 9)):
        patches = clips()
        tokens = pack(patches, GRIDS, seconds=seconds(), budget=budget, max_clips=max_clips)
        assert tokens.segments.lengths == (12, 4, 4, *[0] * (max_clips - 3), budget - 20)
        assert tokens.segments.cu_seqlens.tolist()[-1] == budget
        assert tokens.patches[tokens.real :].abs().sum() == 0
        for mine, theirs in zip(unpack(tokens.patches, tokens.grids), patches, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


def test_positions_are_seconds_rows_columns_in_the_order_of_patches():
    tokens = pack(clips(), GRIDS, seconds=seconds(), budget=24, max_clips=3)
    first = unpack(tokens.positions, tokens.grids)[0]
    expected = [(time, row, column) for time in (0.0, 2.5 / 8) for row in range(2) for column in range(3)]
    torch.testing.assert_close(first, torch.tensor(expected))


def test_times_are_the_centres_of_the_frames_that_a_latent_frame_covers():
    fps, stride = 12.0, 4
    frames = torch.arange(1 + 3 * stride) / fps
    expected = [frames[0], *(frames[1 + j * stride : 1 + (j + 1) * stride].mean() for j in range(3))]
    torch.testing.assert_close(frame_times(4, fps, stride), torch.stack(expected))
    torch.testing.assert_close(frame_times(1, 30.0, 8), torch.zeros(1))
    torch.testing.assert_close(frame_times(3, 5.0, 1), torch.tensor([0.0, 0.2, 0.4]))  # no compression in time
    torch.testing.assert_close(patch_times(torch.tensor([0.0, 1.0, 2.0, 4.0]), 2), torch.tensor([0.5, 3.0]))


def test_the_same_moment_has_the_same_position_at_any_frame_rate():
    torch.testing.assert_close(frame_times(9, 16.0, 1)[::2], frame_times(5, 8.0, 1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"3 clips and 20 tokens does not fit.*2 clips"):
        pack(clips(), GRIDS, seconds=seconds(), budget=20, max_clips=2)
    with pytest.raises(ValueError, match="19 tokens"):
        pack(clips(), GRIDS, seconds=seconds(), budget=19, max_clips=3)
    with pytest.raises(ValueError, match="clip 1 has 12 patches"):
        pack([clips()[0], clips()[0], clips()[2]], GRIDS, seconds=seconds(), budget=30, max_clips=3)
    with pytest.raises(ValueError, match="4 patches in time got 2 moments"):
        pack(clips(), GRIDS, seconds=[*seconds()[:2], torch.zeros(2)], budget=20, max_clips=3)
