"""Latents to patches and back."""

import pytest
import torch

from sora.patches.patchifier import Patchifier
from sora.tokens import Grid


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 3)])
@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (1, 4, 6, 12), (6, 2, 12, 6)])
def test_there_and_back(size, shape):
    patchifier = Patchifier(size=size)
    latents = torch.randn(shape)
    tokens, grid = patchifier.patchify(latents), patchifier.grid(*shape[1:])
    assert tokens.shape == (grid.tokens, patchifier.channels(shape[0]))
    torch.testing.assert_close(patchifier.unpatchify(tokens, grid, shape[0]), latents, atol=0, rtol=0)


def test_a_patch_holds_its_own_neighbourhood_and_patches_come_in_reading_order():
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    tokens = Patchifier(size=(1, 2, 3)).patchify(latents)
    number = 1 * (2 * 2) + 1 * 2 + 0  # frame 1, second row of patches, first column
    expected = latents[:, 1, 2:4, 0:3]
    torch.testing.assert_close(tokens[number], expected.permute(1, 2, 0).flatten(), atol=0, rtol=0)


def test_a_clip_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"latents of 5x8x7 do not divide into patches of 1x2x2; crop the clip or change patches\.size"):
        Patchifier(size=(1, 2, 2)).patchify(torch.zeros(4, 5, 8, 7))
    with pytest.raises(ValueError, match="4 channels"):
        Patchifier(size=(1, 2, 2)).unpatchify(torch.zeros(8, 16), Grid(1, 2, 2), 4)
    with pytest.raises(ValueError, match=r"patches\.size"):
        Patchifier(size=(2, 2))
