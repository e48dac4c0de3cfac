"""The block is the identity at birth and learns, clips that are packed together do not mix in it, and what its option says reaches it."""

from pathlib import Path

import pytest
import torch

from sora.config import own
from sora.config.build import build
from sora.config.compose import compose
from sora.diffusion.objective import pack_levels
from sora.patches.packing import pack, unpack
from sora.text.packing import pack_text
from sora.tokens import Grid

HERE = Path(__file__).parent
GRIDS, PATCH, TEXT = [Grid(2, 2, 3), Grid(1, 4, 2)], 16, 8


def network(*words: str):
    """dit=toy with the block, as `sora train own=[gated.py] --config-dir=conf dit/block=gated` builds it."""
    torch.manual_seed(0)
    with own.naming([str(HERE / "gated.py")]):
        config = compose("train", ["experiment=toy", "dit/block=gated", *words], [HERE / "conf"]).config
        return build(config.dit, patch_channels=PATCH, text_width=TEXT)


def inputs(numbers):
    """A pack of these clips: tokens, noise levels, captions."""
    grids = [GRIDS[number] for number in numbers]
    draws = [torch.Generator().manual_seed(number) for number in numbers]
    clips = [torch.randn(grid.tokens, PATCH, generator=draw) for grid, draw in zip(grids, draws, strict=True)]
    levels = [torch.rand(grid.t, generator=draw) for grid, draw in zip(grids, draws, strict=True)]
    words = [torch.randn(3, TEXT, generator=draw) for draw in draws]
    tokens = pack(clips, grids, seconds=[torch.arange(grid.t) / 8 for grid in grids], budget=24, max_clips=2)
    noise = pack_levels(levels, grids, torch.zeros(24, dtype=torch.bool), segments=3)
    return tokens, noise, pack_text(words, budget=8, max_clips=2)


def test_what_the_option_says_reaches_the_block():
    assert [block.strength for block in network().blocks] == [0.5, 0.5]
    assert [block.strength for block in network("dit.block.strength=2").blocks] == [2.0, 2.0]


def test_the_block_is_the_identity_at_birth_and_gets_gradients():
    dit, seen = network(), []
    dit.blocks[0].register_forward_hook(lambda block, given, made: seen.append((given[0], made[0])))
    torch.nn.init.normal_(dit.out.weight)
    dit(*inputs([0, 1])).square().sum().backward()
    ((before, after),) = seen
    assert torch.equal(before, after)
    assert dit.blocks[0].table.grad.abs().sum() > 0


def test_a_clip_does_not_see_its_neighbour():
    dit = network()
    for value in dit.parameters():
        torch.nn.init.normal_(value, std=0.2)
    together, alone = (unpack(dit(*inputs(numbers)), [GRIDS[number] for number in numbers])[0] for numbers in ([0, 1], [0]))
    assert together.detach().numpy() == pytest.approx(alone.detach().numpy(), abs=1e-4)
