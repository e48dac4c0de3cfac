"""Each kernel reads the places it says; the three grids differ as measured; ranges and crops come out exactly."""

import pytest
import torch

from sora.metrics.extractors.pixels import KERNELS, Preparation, antialiased, half_pixel, legacy

DRAW = torch.Generator().manual_seed(0)


def line(values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def test_the_legacy_grid_aligns_corners_of_first_pixels():
    assert legacy(line([0, 1, 2, 3]), (1, 8)).flatten().tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert half_pixel(line([0, 1, 2, 3]), (1, 8)).flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert legacy(line([0, 1, 2, 3, 4, 5]), (1, 2)).flatten().tolist() == pytest.approx([0, 3])  # shrinking skips, it does not average


def test_rows_and_columns_are_treated_alike():
    image = torch.rand(1, 3, 5, 7, generator=DRAW)
    for kernel in (half_pixel, legacy, antialiased):
        assert torch.allclose(kernel(image, (11, 4)), kernel(image.transpose(2, 3), (4, 11)).transpose(2, 3), atol=1e-6)


@pytest.mark.parametrize("name", ["half_pixel", "legacy", "antialiased"])
def test_constants_and_the_same_size_stay(name):
    assert torch.allclose(KERNELS[name](torch.full((1, 3, 6, 5), 0.3), (9, 8)), torch.tensor(0.3))
    image = torch.rand(2, 3, 6, 5, generator=DRAW)
    assert torch.allclose(KERNELS[name](image, (6, 5)), image, atol=1e-6)


def test_grids_differ_as_measured_on_noise():
    """64 -> 224: 0.121 between legacy and half pixel; antialiasing matters only where frames shrink."""
    image = torch.rand(4, 3, 64, 64, generator=DRAW)
    assert float((legacy(image, (224, 224)) - half_pixel(image, (224, 224))).abs().mean()) == pytest.approx(0.121, abs=0.004)
    assert torch.allclose(antialiased(image, (224, 224)), half_pixel(image, (224, 224)), atol=1e-5)
    assert float((antialiased(image, (48, 48)) - half_pixel(image, (48, 48))).abs().mean()) > 0.02


def test_black_and_white_become_low_and_high_from_bytes_and_floats():
    videos = torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8)
    videos[1] = 255
    prepare = Preparation(size=(6, 6), kernel="half_pixel", low=-1.0, high=1.0)
    found = prepare(videos)
    assert found.shape == (2, 3, 3, 6, 6) and torch.equal(found[0], -torch.ones(3, 3, 6, 6)) and torch.allclose(found[1], torch.tensor(1.0))
    assert torch.allclose(prepare(videos / 255), found)
    normal = Preparation(size=None, kernel="none", mean=(0.5, 0.2, 0.1), deviation=(0.5, 0.4, 0.3))(videos)
    assert normal[1, :, 0, 0, 0].tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert normal[0, :, 2, 3, 3].tolist() == pytest.approx([-1.0, -0.5, -1 / 3])


def test_time_and_channels_keep_their_places():
    videos = torch.randint(0, 256, (3, 3, 3, 3, 3), dtype=torch.uint8, generator=DRAW)
    assert torch.allclose(Preparation(size=None, kernel="none")(videos), videos.permute(0, 4, 1, 2, 3) / 255)


def test_the_middle_is_cut_out():
    videos = torch.zeros(1, 1, 4, 8, 3, dtype=torch.uint8)
    videos[..., 2:6, :] = 255  # the middle square
    assert float(Preparation(size=(4, 4), kernel="none", crop=True)(videos).min()) == 1.0
    stretched = Preparation(size=(4, 4), kernel="half_pixel")(videos)
    assert float(stretched.min()) == 0.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="choose from half_pixel, legacy, antialiased, none"):
        Preparation(size=None, kernel="cubic")
    with pytest.raises(ValueError, match="frames are 4x4 and the extractor takes 8x8"):
        Preparation(size=(8, 8), kernel="none")(torch.zeros(1, 1, 4, 4, 3))
    with pytest.raises(ValueError, match="takes \\(batch, frames, height, width, 3\\)"):
        Preparation(size=None, kernel="none")(torch.zeros(1, 3, 4, 4, 4))
