"""The flow finds motions that are known, says nothing moves where nothing does, and knows what is hidden."""

import pytest
import torch

from sora.metrics.clips.flow import grey, optical_flow, visible, warp


def texture(height, width, across=0.0, down=0.0):
    """Waves of many directions, each at least seven pixels long, in [0, 1], moved by (across, down) pixels."""
    rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    draw = torch.Generator().manual_seed(3)
    image = torch.zeros(height, width)
    for _ in range(40):
        f, phase = torch.rand(2, generator=draw) * 0.3 - 0.15, torch.rand(1, generator=draw) * 6.28
        image += torch.cos(6.283 * (f[0] * (columns - across) + f[1] * (rows - down)) + phase)
    return (image / (2 * 40**0.5) * 0.4 + 0.5).clamp(0, 1)[None, None]


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
@pytest.mark.parametrize("motion", [(0, 0), (0.3, 0.2), (1.5, -0.7), (-4, 3)])
def test_known_motions_are_found_to_a_tenth_of_a_pixel(size, motion):
    flow = optical_flow(texture(*size), texture(*size, *motion))[:, :, 8:-8, 8:-8]
    assert float((flow - torch.tensor(motion)[None, :, None, None]).norm(dim=1).mean()) < 0.1


def test_nothing_moves_on_flat_ground_and_in_stills():
    flat = torch.full((2, 1, 20, 20), 0.4)
    assert float(optical_flow(flat, flat).abs().max()) == 0
    assert float(optical_flow(texture(20, 30), texture(20, 30)).abs().max()) < 1e-4


def test_warping_takes_a_motion_back():
    flow = torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 20, 30)
    moved = warp(texture(20, 30, 2, -1), flow)
    assert torch.allclose(moved[:, :, 2:-2, 3:-3], texture(20, 30)[:, :, 2:-2, 3:-3], atol=1e-4)


def test_what_leaves_the_frame_or_is_not_met_again_is_not_visible():
    flow = torch.zeros(1, 2, 6, 10)
    flow[:, 0] = 3
    seen = visible(flow, -flow)[0, 0]
    assert seen[:, :7].all() and not seen[:, 7:].any()
    assert not visible(flow, flow).any()


def test_grey_and_errors():
    frames = torch.tensor([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], dtype=torch.uint8)
    assert grey(frames).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114, 1.0])
    with pytest.raises(ValueError, match="have no flow"):
        optical_flow(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9))
