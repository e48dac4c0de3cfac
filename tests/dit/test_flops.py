"""Counted operations are those of the formulas, of torch's own counter, and of masks counted pair by pair."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sora.dit.attention.dense import dense_attention
from sora.dit.attention.layout import sees
from sora.dit.attention.patterns import causal_attention, factorised_attention, full_attention, windowed_attention
from sora.dit.blocks.dual import dual_block
from sora.dit.dit import DiT, cross_block, gelu, layer_norm, rms_per_head
from sora.dit.flops import TRAINING, AttentionPairs, Flops, ProductRows
from sora.dit.layers.modulation import SingleModulation
from sora.dit.layers.registers import register_tokens
from sora.dit.layers.rope import AxialRope, wave_positions
from sora.system.devices import measured_peak, stated
from sora.tokens import Grid
from tests.dit.test_dit import TEXT, Clip, P, packed

D, HEADS, DEPTH, RATIO, COUNT, KV = 24, 3, 2, 4.0, 5, 3
GRID, WORDS = Grid(3, 5, 7), 11


def make(attention, **changes):
    settings = {"width": D, "depth": DEPTH, "heads": HEADS, "kv_heads": KV, "mlp": gelu, "mlp_ratio": RATIO, "pooled_text": True}
    settings |= {"norm": partial(layer_norm, eps=1e-6), "qk_norm": partial(rms_per_head, eps=1e-6), "modulation": SingleModulation()}
    settings |= {
        "rope": AxialRope(axes=[2, 2, 4], time_scale=1.0, theta=100.0),
        "position": partial(wave_positions, count=COUNT, time_scale=1.0),
    }
    settings |= {"pattern": full_attention, "block": cross_block} | changes
    return DiT(patch_channels=P, text_width=TEXT, attention=attention, **settings)


def by_hand(grid, words):
    n, m, u = grid.tokens, words, grid.t
    token = P * D + 6 * COUNT * D + DEPTH * (3 * D * D + D * D + 2 * D * D + 2 * RATIO * D * D) + D * P
    word = TEXT * D + D * D + DEPTH * 2 * D * D
    level = 256 * D + D * D + 6 * D * D + 2 * D * D
    pooled = 2 * D * D
    return 2 * (token * n + word * m + level * u + pooled) + DEPTH * (4 * D * n * n + 4 * D * n * m)


@pytest.mark.parametrize(("grid", "words"), [(GRID, WORDS), (Grid(1, 1, 1), 0), (Grid(1, 16, 9), 40), (Grid(40, 1, 1), 1)])
def test_a_clip_costs_what_the_formulas_say(grid, words):
    assert Flops.of(make).clip(grid, words) == by_hand(grid, words)


def test_fewer_heads_of_keys_save_their_projection_and_no_attention():
    saved = Flops.of(make).clip(GRID, WORDS) - Flops.of(partial(make, kv_heads=1)).clip(GRID, WORDS)
    assert saved == DEPTH * 2 * GRID.tokens * D * (2 * D - 2 * D // HEADS)


def test_a_pack_costs_what_its_clips_cost_alone_and_the_square_of_none_of_its_neighbours():
    flops, grids, words = Flops.of(make), [GRID, Grid(1, 4, 4), GRID], [11, 0, 5]
    assert flops.pack(grids, words) == sum(by_hand(grid, number) for grid, number in zip(grids, words, strict=True))
    merged = Grid(GRID.t * 2, GRID.h, GRID.w)
    assert flops.clip(merged, 8) > 2 * flops.clip(GRID, 4)


def test_torchs_counter_finds_the_same_where_it_is_right():
    """The masked formula is two plain products for one clip alone; the backward pass lacks only the gradients of what is put in."""
    clip = Clip(0)  # of several words: a product with one is no product to einsum
    tokens, levels, text = packed([clip], budget=clip.grid.tokens, max_clips=1, max_levels=3, max_words=len(clip.words))
    network = make(dense_attention)
    with FlopCounterMode(display=False) as forward:
        out = network(tokens, levels, text)
    # torch's pass has a padding segment, whose empty caption is pooled too, and a level 0 for each segment's conditions
    extra = 2 * 2 * D * D + 2 * 2 * (256 * D + 9 * D * D)
    assert forward.get_total_flops() == Flops.of(make).clip(clip.grid, len(clip.words)) + extra
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    inputs = clip.grid.tokens * (P + 6 * COUNT) * D + 3 * 256 * D  # (captions meet a norm's gains first)
    assert forward.get_total_flops() + backward.get_total_flops() == TRAINING * forward.get_total_flops() - 2 * inputs


@pytest.mark.parametrize("reach", [(-1, -1, -1), (0, -1, -1), (-1, 0, 0), (1, 2, 3), (2, 0, -1), (9, 9, 9)])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("grid", [Grid(4, 3, 5), Grid(1, 2, 2), Grid(7, 1, 1)])
def test_masked_attention_costs_the_pairs_of_the_mask(reach, earlier, grid):
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, 3)
    seen = sees(places, places, reach=reach, causal=earlier)
    tokens = ProductRows(1, 0, 0, 0)
    assert AttentionPairs(tokens, tokens, reach, earlier).pairs(grid, 5) == seen.sum()


@pytest.mark.parametrize(
    ("pattern", "pairs"),
    [
        (factorised_attention, 3 * 35 * 35 + 35 * 3 * 3),
        (partial(causal_attention, frames=-1), 2 * (1 + 2 + 3) * 35 * 35),
        (partial(windowed_attention, frames=0, rows=1, columns=-1), 2 * 3 * (2 + 3 * 3 + 2) * 7 * 7),
    ],
)
def test_a_pattern_saves_the_pairs_that_it_hides(pattern, pairs):
    """Over the two blocks, in a clip of 3 frames of 5 x 7 patches."""
    saved = Flops.of(make).clip(GRID, WORDS) - Flops.of(partial(make, pattern=pattern)).clip(GRID, WORDS)
    assert saved == 4 * D * (2 * GRID.tokens**2 - pairs)


def test_in_joint_blocks_words_meet_patches_and_one_another():
    n, m = GRID.tokens, WORDS
    stream = 3 * D * D + D * D + 2 * RATIO * D * D
    level = 256 * D + D * D + 6 * D * D  # the words', one for the clip
    found = Flops.of(partial(make, block=dual_block)).clip(GRID, WORDS)
    apart = by_hand(GRID, WORDS) - DEPTH * (2 * (2 * D * D * n + 2 * D * D * m) + 4 * D * n * m + 4 * D * n * n)
    assert found == apart + 2 * m * (stream + 3 * D * D) + 2 * level + DEPTH * 4 * D * (n + m) ** 2  # words end at the last block


def test_rows_are_read_as_what_they_are_of():
    assert ProductRows.decoded(3 + 2 * 16 + 1 * 16**3) == ProductRows(tokens=3, words=2, levels=0, clips=1)
    assert ProductRows.decoded(512 * 16**3) == ProductRows(0, 0, 0, 512)  # a caption filled up to 512 words in every clip
    assert ProductRows(1, 1, 0, 4).of(10, 5, 3, 2) == 10 + 5 + 8  # registers in joint blocks


def test_registers_cost_what_tokens_do():
    flops = Flops.of(partial(make, registers=partial(register_tokens, count=2)))
    n, two = GRID.tokens, 2
    token = DEPTH * (3 * D * D + D * D + 2 * D * D + 2 * RATIO * D * D) + D * P
    level = 256 * D + D * D + 6 * D * D + 2 * D * D
    attention = DEPTH * 4 * D * ((n + two) ** 2 - n**2 + two * WORDS)
    assert flops.clip(GRID, WORDS) - by_hand(GRID, WORDS) == 2 * (two * token + level) + attention


def test_peaks_are_known_by_name_and_else_measured():
    assert stated("NVIDIA H100 80GB HBM3") == 989e12 and stated("NVIDIA H100 PCIe") == 756e12
    assert stated("NVIDIA A100-SXM4-80GB") == stated("NVIDIA A100 80GB PCIe") == 312e12
    assert stated("NVIDIA L40S") == 362e12 and stated("NVIDIA L4") == 121e12 and stated("NVIDIA A10G") is None
    assert stated("NVIDIA GeForce GTX 1080") is None
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32, seconds=0.0, size=256) < 1e14
