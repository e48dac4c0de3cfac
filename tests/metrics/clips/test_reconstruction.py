"""PSNR and SSIM keep their published fixtures and stated conventions."""

import pytest
import torch

from sora.metrics.clips.reconstruction import CAP, Reconstruction, psnr, psnr_pooled, ssim, temporal_psnr

DRAW = torch.Generator().manual_seed(0)
VIDEO = torch.randint(0, 256, (3, 3, 16, 20, 3), dtype=torch.uint8, generator=DRAW)  # batch == frames == channels


def test_black_against_white():
    black, white = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8), torch.full((2, 3, 16, 16, 3), 255, dtype=torch.uint8)
    assert psnr(black, white).tolist() == pytest.approx([0.0, 0.0])
    assert ssim(black, white).tolist() == pytest.approx([9.999000099990664e-05] * 2, rel=1e-9)


def test_a_constant_error_has_its_closed_form():
    other = torch.where(VIDEO < 250, VIDEO + 5, VIDEO - 5).to(torch.uint8)
    expected = 20 * torch.log10(torch.tensor(255 / 5)).item()
    assert psnr(VIDEO, other).tolist() == pytest.approx([expected] * 3, rel=1e-6)
    assert psnr_pooled(VIDEO, other).tolist() == pytest.approx([expected] * 3, rel=1e-6)


def test_pooling_is_never_larger_than_the_mean_over_frames():
    other = VIDEO.clone()
    other[:, 0] = 255 - other[:, 0]
    other[:, 1] ^= 1
    other[:, 2] ^= 3
    assert (psnr_pooled(VIDEO, other) < psnr(VIDEO, other) - 1).all()


def test_identical_videos_are_capped_and_counted():
    metric = Reconstruction()
    metric.update(VIDEO, VIDEO)
    found = metric.compute()
    assert found["psnr"] == CAP and found["exact_frames"] == 9 and found["ssim"] == pytest.approx(1.0)


def test_ssim_agrees_with_an_independent_implementation():
    from torchmetrics.functional.image import structural_similarity_index_measure

    noisy = (VIDEO.int() + torch.randint(-30, 31, VIDEO.shape, generator=DRAW)).clamp(0, 255).to(torch.uint8)
    for item in range(3):
        one, two = (video[item].permute(0, 3, 1, 2).double() / 255 for video in (VIDEO, noisy))
        theirs = structural_similarity_index_measure(one, two, data_range=1.0, gaussian_kernel=True, sigma=1.5, kernel_size=11)
        assert float(ssim(VIDEO, noisy)[item]) == pytest.approx(float(theirs), abs=2e-3)


def test_temporal_psnr_sees_flicker_and_no_constant_error():
    still = torch.full((1, 6, 12, 12, 3), 100, dtype=torch.uint8)
    flicker = still.clone()
    flicker[:, ::2] += 10
    assert float(temporal_psnr(still, still + 10)) == CAP
    assert float(temporal_psnr(still, flicker)) == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), rel=1e-6)


def test_videos_of_several_sizes_count_alike_however_they_are_batched():
    noisy = VIDEO ^ 7
    small = VIDEO[:1, :1, :8, :8]
    together, apart = Reconstruction(), Reconstruction()
    together.update(VIDEO, noisy)
    together.update(small, small ^ 1)
    for item in range(3):
        apart.update(VIDEO[item : item + 1], noisy[item : item + 1])
    apart.update(small, small ^ 1)
    assert together.compute() == pytest.approx(apart.compute())
    assert together.compute()["videos"] == 4
    expected = (psnr(VIDEO, noisy).sum() + psnr(small, small ^ 1).sum()) / 4
    assert together.compute()["psnr"] == pytest.approx(float(expected))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(VIDEO, VIDEO[:, :2])
    with pytest.raises(ValueError, match="window of 11x11"):
        ssim(VIDEO[:, :, :8], VIDEO[:, :, :8])
    with pytest.raises(ValueError, match="no video"):
        Reconstruction().compute()
