"""Laws of the VAE's parts."""

from itertools import pairwise

import pytest
import torch

from sora.vae.layers import CausalConv, FromPixels, OutputHead, ResidualBlock, ToPixels, group, haar_blocks, haar_levels, triple, ungroup


def haar(size):
    """Pixels to Haar coefficients and back."""
    forth, back = FromPixels(size, 3 * size[0] * size[1] * size[2], (1, 1, 1)), ToPixels(3 * size[0] * size[1] * size[2], size)
    with torch.no_grad():
        torch.nn.init.eye_(forth.conv.conv.weight[:, :, 0, 0, 0])
        torch.nn.init.eye_(back.map.weight)
        forth.conv.conv.bias.zero_()
        back.map.bias.zero_()
    return forth, back


SIZES = [(1, 1, 1), (2, 4, 4), (4, 4, 4), (4, 8, 8), (1, 2, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_grouping_then_ungrouping_changes_nothing(size):
    x = torch.randn(3, 3, 3 * size[0], 3 * size[1], 5 * size[2])  # batch == channels == groups
    assert torch.equal(ungroup(group(x, size), size), x)


@pytest.mark.parametrize("size", SIZES)
def test_haar_coefficients_are_invertible(size):
    forth, back = haar(size)
    x = torch.randn(3, 3, 3 * size[0], 3 * size[1], 5 * size[2])
    assert torch.allclose(back(forth(x)), x, atol=5e-6)
    assert forth(x).shape[1] == forth.coefficients


def test_folding_the_transform_into_the_weights_changes_no_result():
    layer, x = FromPixels((2, 2, 4), 5, (2, 3, 3)), torch.randn(2, 3, 6, 8, 12)
    coefficients = haar((2, 2, 4))[0](x)
    assert torch.allclose(layer(x), layer.conv(coefficients), atol=1e-4)
    head, y = ToPixels(5, (2, 2, 4)), torch.randn(2, 5, 3, 4, 3)
    coefficients = torch.einsum("d i, b i t h w -> b d t h w", head.map.weight, y) + head.map.bias.view(-1, 1, 1, 1)
    assert torch.allclose(head(y), haar((2, 2, 4))[1](coefficients), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_the_haar_basis_is_orthonormal_and_starts_with_the_mean(length):
    basis, levels = haar_levels(length)
    assert torch.allclose(basis @ basis.T, torch.eye(length, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis[0], torch.full((length,), length**-0.5, dtype=torch.float64))
    assert levels == sorted(levels) and basis[1:].sum(1).abs().max().item() < 1e-12 if length > 1 else levels == [0]


def test_the_first_three_coefficients_are_the_mean_lightness_and_colour_and_the_rest_ignore_them():
    forth, _ = haar((2, 4, 4))
    colour = torch.tensor([0.3, -0.5, 0.9]).view(1, 3, 1, 1, 1)
    coefficients = forth(colour.expand(1, 3, 2, 4, 4)).flatten()
    lightness, difference, other = coefficients[:3] * 0.4 * torch.tensor([1.5, 0.6, 0.6])
    red, green, blue = colour.flatten()
    assert torch.allclose(lightness, (red + green + blue) / 3**0.5, atol=1e-6)
    assert torch.allclose(difference, (red - blue) / 2**0.5, atol=1e-6)
    assert torch.allclose(other, (red - 2 * green + blue) / 6**0.5, atol=1e-6)
    assert coefficients[3:].abs().max() < 1e-5


def test_spreads_fall_by_half_for_each_finer_scale():
    _, spread = haar_blocks((2, 4, 4))
    lightness = spread[::3]
    ratios = {round(float(a / b), 4) for a, b in pairwise(lightness[1:])}
    assert ratios == {1.0, 2.0}


def test_the_basis_is_orthonormal_over_pixels_and_colours():
    basis, _ = haar_blocks((4, 2, 2))
    assert torch.allclose(basis @ basis.T, torch.eye(48), atol=1e-6)


def test_sizes_that_are_no_power_of_two_name_the_key():
    with pytest.raises(ValueError, match=r"not 3.*vae\.stem"):
        FromPixels((3, 4, 4), 2, (1, 1, 1))


@pytest.mark.parametrize("bad", [(1, 2), (1, 2, 0), "abc", 4, (1, 2, 3.5)])
def test_a_triple_that_is_none_names_its_key(bad):
    with pytest.raises(ValueError, match=r"vae\.stem"):
        triple(bad, "stem")


@pytest.mark.parametrize("kernel", [(1, 3, 3), (2, 3, 3), (3, 3, 3), (3, 1, 5)])
def test_a_causal_convolution_never_looks_ahead(kernel):
    conv, x = CausalConv(3, 5, kernel), torch.randn(2, 3, 6, 5, 4)
    changed = x.clone()
    changed[:, :, 4:] += 1.0
    before, after = conv(x), conv(changed)
    assert before.shape == (2, 5, 6, 5, 4)
    assert torch.allclose(before[:, :, :4], after[:, :, :4], atol=1e-6)
    assert not torch.allclose(before[:, :, 4], after[:, :, 4], atol=1e-3)


def test_a_causal_convolution_is_the_sum_over_past_frames():
    conv, x = CausalConv(2, 2, (3, 1, 1)), torch.randn(1, 2, 5, 1, 1)
    weight, bias = conv.conv.weight[..., 0, 0], conv.conv.bias
    for t in range(5):
        taps = [weight[:, :, 2 - back] @ x[0, :, t - back, 0, 0] for back in range(3) if t - back >= 0]
        assert torch.allclose(conv(x)[0, :, t, 0, 0], sum(taps) + bias, atol=1e-5)


def test_blocks_are_identities_and_heads_are_silent_at_birth():
    x = torch.randn(2, 6, 3, 4, 4)
    assert torch.equal(ResidualBlock(6, (3, 3, 3))(x), x)
    assert OutputHead(6, torch.nn.Conv3d(6, 4, 1))(x).abs().max() == 0
