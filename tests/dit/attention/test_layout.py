"""Coordinates and masks of a pack are those of a loop over its tokens."""

import pytest
import torch

from sora.dit.attention.layout import Layout, Mask, sees
from sora.patches.packing import pack
from sora.tokens import Grid

GRIDS = (Grid(2, 3, 4), Grid(1, 1, 1), Grid(3, 3, 3), Grid(1, 5, 2))


def layout(*, padding, empty, device="cpu"):
    tokens = sum(grid.tokens for grid in GRIDS)
    clips, seconds = [torch.zeros(grid.tokens, 1) for grid in GRIDS], [torch.zeros(grid.t) for grid in GRIDS]
    return Layout.of(pack(clips, GRIDS, seconds=seconds, budget=tokens + padding, max_clips=len(GRIDS) + empty).to(device))


@pytest.mark.parametrize(("padding", "empty"), [(0, 0), (4, 0), (0, 3), (3, 3)])
def test_coordinates_are_those_of_a_loop(padding, empty):
    found = layout(padding=padding, empty=empty)
    expected = [(t, h, w) for grid in GRIDS for t in range(grid.t) for h in range(grid.h) for w in range(grid.w)]
    assert found.coordinates[: len(expected)].tolist() == [list(place) for place in expected]
    assert found.grids.tolist() == [*map(list, GRIDS), *[[0, 0, 0]] * empty, [1, 1, padding]]
    assert not found.coordinates.is_floating_point()


def test_only_coordinates_move_to_the_device_and_nothing_is_read_back():
    """A tensor on the device "meta" has no numbers: whoever asks for one fails."""
    found = layout(padding=3, empty=2, device="meta")
    assert found.coordinates.is_meta
    assert found.segments.cu_seqlens.is_meta
    assert found.grids.device.type == found.segments.host.device.type == "cpu"
    assert found.segments.lengths == layout(padding=3, empty=2).segments.lengths


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [(-1, -1, -1), (0, -1, -1), (-1, 0, 0), (1, 2, 1)])
def test_who_sees_whom_is_said_by_differences(reach, causal):
    places = layout(padding=0, empty=0).coordinates[:24]
    seen = sees(places, places, reach=reach, causal=causal)
    for mine, row in zip(places.tolist(), seen.tolist(), strict=True):
        for theirs, found in zip(places.tolist(), row, strict=True):
            near = all(far == -1 or abs(a - b) <= far for a, b, far in zip(mine, theirs, reach, strict=True))
            assert found == (near and (not causal or theirs[0] <= mine[0]))


def test_a_reach_below_minus_one_is_refused():
    with pytest.raises(ValueError, match=r"dit\.pattern.*at least 0, or -1"):
        Mask(layout(padding=0, empty=0), (1, -2, 0), False)
