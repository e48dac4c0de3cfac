"""Registers and what is told of a clip as a whole: the laws of the packed network hold with them."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sora.dit.attention.patterns import factorised_attention, full_attention
from sora.dit.blocks.dual import dual_block
from sora.dit.layers.clip_shape import clip_shape, measured_shapes
from sora.dit.layers.registers import register_tokens
from sora.patches.packing import unpack
from sora.tokens import Segments
from tests.dit.test_dit import Clip, apart, network, outputs_and_gradients, packed

CHANGES = [
    pytest.param({"registers": partial(register_tokens, count=3)}, id="registers"),
    pytest.param({"registers": partial(register_tokens, count=1), "block": dual_block}, id="registers in joint blocks"),
    pytest.param({"clip_shape": partial(clip_shape, count=6)}, id="shape"),
    pytest.param({"clip_shape": partial(clip_shape, count=6), "pooled_text": False}, id="shape without captions"),
]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_clip_does_not_see_its_neighbours_nor_padding(changes):
    dit, clips = network(**changes), [Clip(number) for number in range(4)]
    together, gradients = outputs_and_gradients(dit, clips, budget=25, max_clips=6)
    alone = [outputs_and_gradients(dit, [clip], budget=clip.grid.tokens, max_clips=1) for clip in clips]
    for out, (single, _) in zip(together, alone, strict=True):
        assert apart(out, single[0]) <= 1e-6
    for whole, *parts in zip(gradients, *(grads for _, grads in alone), strict=True):
        assert (whole - sum(parts)).norm() <= 2e-5 * sum(part.norm() for part in parts)
        assert "block" in changes or whole.abs().max() > 0  # of words, the last joint block leaves what nothing reads


def test_the_first_predictions_are_zero_with_registers():
    dit = network(trained=False, registers=partial(register_tokens, count=2), clip_shape=partial(clip_shape, count=3))
    assert dit(*packed([Clip(0), Clip(1)], budget=16, max_clips=3)).abs().max() == 0


def test_what_a_register_holds_reaches_its_clip():
    dit = network(registers=partial(register_tokens, count=2))
    inputs = packed([Clip(1)], budget=9, max_clips=1)
    before = dit(*inputs).detach()
    with torch.no_grad():
        dit.registers.start += torch.randn_like(dit.registers.start)
    assert (dit(*inputs) - before).abs().max() > 1e-3


def test_patterns_that_know_no_registers_refuse_them():
    with pytest.raises(ValueError, match=r"dit\.registers have no place in a clip.*full_attention"):
        network(registers=partial(register_tokens, count=2), pattern=factorised_attention)
    with pytest.raises(ValueError, match=r"registers\.count is 0"):
        register_tokens(8, full_attention, count=0)


def test_the_size_and_rate_of_each_clip_are_read_off_its_positions():
    """Crops begin anywhere; an image has no rate; empty segments and a padding of zeros have nothing to tell."""
    video = torch.cartesian_prod(torch.tensor([0.5, 0.75, 1.0]), torch.arange(4.0, 9.0), torch.arange(2.0, 9.0))
    image = torch.cartesian_prod(torch.tensor([0.0]), torch.arange(3.0), torch.arange(2.0)).reshape(-1, 3)
    positions = torch.cat((video, image, torch.zeros(4, 3)))
    found = measured_shapes(positions, Segments.of((105, 6, 0, 4)))
    torch.testing.assert_close(found[:3], torch.tensor([[5.0, 7.0, 0.5, 4.0], [3.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("axis", range(3))
def test_clips_of_other_rates_and_sizes_are_told_apart(axis):
    """With rotations and waves of places silenced, a rate is all that two clips of one grid differ in."""
    dit = network(clip_shape=partial(clip_shape, count=6), position=None)
    tokens, levels, text = packed([Clip(1)], budget=9, max_clips=1)
    dit.rope.bits.zero_()
    stretched = replace(tokens, positions=tokens.positions * (1 + torch.eye(3)[axis]))
    told = apart(*(unpack(dit(each, levels, text), each.grids)[0] for each in (tokens, stretched)))
    assert (told > 1e-3) == (axis < 2)  # the clip has one column
