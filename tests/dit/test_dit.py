"""The laws of the packed denoising network."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sora.diffusion.objective import pack_levels
from sora.dit.attention.fastest import fastest_attention
from sora.dit.attention.patterns import full_attention
from sora.dit.dit import DiT, cross_block, gelu, layer_norm, rms_per_head
from sora.dit.layers.mlps import swiglu
from sora.dit.layers.modulation import SingleModulation
from sora.dit.layers.rope import AxialRope, wave_positions
from sora.patches.packing import pack, unpack
from sora.tokens import Grid, NoiseLevels, Segments, TextTokens, means, owners

P, TEXT = 6, 10
# An image, a portrait, a landscape and a square of one token: as many clips as one of them has tokens, where broadcasting hides.
GRIDS = (Grid(1, 2, 2), Grid(3, 3, 1), Grid(2, 1, 4), Grid(1, 1, 1))
WORDS = (4, 1, 0, 7)
POSITION = partial(wave_positions, count=4, time_scale=4.0)
WITH_AND_WITHOUT = [
    pytest.param({"position": position, "pooled_text": pooled}, id=f"{place}-{text}")
    for place, position in (("waves", POSITION), ("no waves", None))
    for text, pooled in (("pooled", True), ("not pooled", False))
]


def network(*, mlp=gelu, trained=True, **changes):
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "attention": fastest_attention}
    settings |= {
        "position": POSITION,
        "pooled_text": True,
        "kv_heads": None,
        "modulation": SingleModulation(),
        "pattern": full_attention,
        "block": cross_block,
    }
    settings |= {"norm": partial(layer_norm, eps=1e-6), "qk_norm": partial(rms_per_head, eps=1e-6)} | changes
    dit = DiT(patch_channels=P, text_width=TEXT, mlp=mlp, rope=AxialRope(axes=[4, 6, 6], time_scale=4.0, theta=100.0), **settings)
    if trained:
        for parameter in dit.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return dit


class Clip:
    """dtype: of what the network adds up; in float64 a law of packing shows to 1e-12, whatever order a CPU adds in."""

    def __init__(self, number, dtype=torch.float32):
        draw = torch.Generator().manual_seed(number)
        self.grid, words = GRIDS[number], WORDS[number]
        self.patches = torch.randn(self.grid.tokens, P, generator=draw)
        self.seconds = torch.rand(self.grid.t, generator=draw).cumsum(0)
        self.levels = torch.rand(self.grid.t, generator=draw)
        self.words = torch.randn(words, TEXT, generator=draw)
        self.weight = torch.randn(self.grid.tokens, P, generator=draw)
        self.patches, self.words = self.patches.to(dtype), self.words.to(dtype)


def packed(clips, *, budget, max_clips, max_levels=20, max_words=24):
    grids = [clip.grid for clip in clips]
    tokens = pack([clip.patches for clip in clips], grids, seconds=[clip.seconds for clip in clips], budget=budget, max_clips=max_clips)
    words = torch.cat([clip.words for clip in clips])
    lengths = [len(clip.words) for clip in clips] + [0] * (max_clips - len(clips)) + [max_words - len(words)]
    states = torch.cat((words, torch.full((max_words - len(words), TEXT), 0.5, dtype=words.dtype)))
    conditions = torch.zeros(budget, dtype=torch.bool)
    levels = pack_levels([clip.levels for clip in clips], grids, conditions, segments=max_clips + 1, max_levels=max_levels)
    return tokens, levels, TextTokens(states, Segments.of(lengths))


def outputs_and_gradients(dit, clips, **budgets):
    """Each clip's output, and the parameters' gradients of a weighted sum of all of them."""
    dit.zero_grad()
    inputs = packed(clips, **budgets)
    outputs = unpack(dit(*inputs), inputs[0].grids)
    sum((out * clip.weight).sum() for out, clip in zip(outputs, clips, strict=True)).backward()
    return [out.detach() for out in outputs], [parameter.grad.clone() for parameter in dit.parameters()]


def apart(a, b) -> float:
    """The largest difference over the largest number (or 1): networks of large weights round in proportion to their outputs."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max()) / max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("changes", [{"mlp": swiglu}, *WITH_AND_WITHOUT])
def test_a_clip_does_not_see_its_neighbours(changes):
    dit, clips = network(**changes).double(), [Clip(number, torch.float64) for number in range(4)]
    together, gradients = outputs_and_gradients(dit, clips, budget=22, max_clips=4)
    alone = [outputs_and_gradients(dit, [clip], budget=clip.grid.tokens, max_clips=1) for clip in clips]
    for out, (single, _) in zip(together, alone, strict=True):
        assert apart(out, single[0]) <= 1e-12
    for whole, *parts in zip(gradients, *(grads for _, grads in alone), strict=True):
        assert (whole - sum(parts)).norm() <= 1e-12 * sum(part.norm() for part in parts)


def test_no_gradient_reaches_another_clip():
    dit, clips = network(), [Clip(number) for number in range(4)]
    tokens, levels, text = packed(clips, budget=25, max_clips=5)
    patches, states = tokens.patches.requires_grad_(), text.states.requires_grad_()
    unpack(dit(tokens, levels, text), tokens.grids)[1].sum().backward()
    owner = torch.arange(6).repeat_interleave(torch.tensor(tokens.segments.lengths))
    reader = torch.arange(6).repeat_interleave(torch.tensor(text.segments.lengths))
    assert patches.grad[owner != 1].abs().max() == 0
    assert states.grad[reader != 1].abs().max() == 0
    assert patches.grad[owner == 1].abs().min(dim=0).values.max() > 0
    assert states.grad[reader == 1].abs().max() > 0


@pytest.mark.parametrize("changes", WITH_AND_WITHOUT)
def test_padding_is_irrelevant(changes):
    dit, clips = network(**changes).double(), [Clip(0, torch.float64), Clip(2, torch.float64)]
    tight, gradients = outputs_and_gradients(dit, clips, budget=12, max_clips=2, max_levels=7, max_words=4)
    loose, others = outputs_and_gradients(dit, clips, budget=31, max_clips=7, max_levels=19, max_words=50)
    for a, b in zip(tight, loose, strict=True):
        assert apart(a, b) <= 1e-14
    for a, b in zip(gradients, others, strict=True):
        assert apart(a, b) <= 1e-13
    tokens, levels, text = packed(clips, budget=31, max_clips=7)
    dirty = tokens.patches.clone()
    dirty[tokens.real :] = 100.0
    assert apart(dit(tokens.with_patches(dirty), levels, text)[: tokens.real], torch.cat(loose)) <= 1e-6


def test_the_order_of_clips_is_irrelevant():
    dit, clips = network(), [Clip(number) for number in range(4)]
    forwards, gradients = outputs_and_gradients(dit, clips, budget=22, max_clips=4)
    backwards, others = outputs_and_gradients(dit, clips[::-1], budget=22, max_clips=4)
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert apart(a, b) <= 1e-6
    for a, b in zip(gradients, others, strict=True):
        assert apart(a, b) <= 3e-5


def test_equal_levels_per_frame_are_one_level():
    dit, clip = network(), Clip(1)
    clip.levels = torch.full((3,), 0.6)
    tokens, levels, text = packed([clip], budget=9, max_clips=1, max_levels=5)
    one = NoiseLevels(torch.tensor([0.6, 0.1]), torch.zeros(9, dtype=torch.int64), owners=torch.tensor([0, 1]))
    assert apart(dit(tokens, levels, text), dit(tokens, one, text)) <= 1e-6


def test_every_input_matters():
    dit, clip = network(), Clip(1)
    tokens, levels, text = packed([clip], budget=9, max_clips=1)
    before = dit(tokens, levels, text)
    changed = {
        "level of one frame": (tokens, replace(levels, levels=levels.levels.index_fill(0, torch.tensor([1]), 0.9)), text),
        "time": (replace(tokens, positions=tokens.positions * torch.tensor([1.3, 1, 1])), levels, text),
        "caption": (tokens, levels, replace(text, states=-text.states)),
    }
    for name, inputs in changed.items():
        assert (dit(*inputs) - before).abs().max() > 1e-3, name


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (3, 1, 0, 0, 5), (0, 0, 2, 0), (0, 7), (5, 0, 0), (0, 0, 0), (1,)])
def test_owners_and_means_are_those_of_a_loop(lengths):
    """Empty segments stand in front, between, behind; as many states as channels, and the last segment is padding."""
    segments, states = Segments.of(lengths), torch.randn(sum(lengths), 16, dtype=torch.float64)
    owned = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert owners(segments).tolist() == owned
    expected = [states[[place for place, owner in enumerate(owned) if owner == number]].sum(0) for number in range(len(lengths))]
    expected = torch.stack(expected) / torch.tensor(lengths, dtype=torch.float64).clamp_min(1)[:, None]
    torch.testing.assert_close(means(states, segments), expected, atol=1e-12, rtol=0)


def test_the_mean_of_a_long_caption_is_exact_in_bf16():
    states = torch.full((1000, 3), 1.5, dtype=torch.bfloat16)
    assert torch.equal(means(states, Segments.of((1000, 0))), torch.tensor([[1.5] * 3, [0.0] * 3], dtype=torch.bfloat16))


def test_captions_of_one_length_reach_their_own_clips_through_their_means():
    """With cross-attention silenced, the mean alone tells a caption; without it, nothing does."""
    for pooled in (True, False):
        dit, clips = network(pooled_text=pooled), [Clip(1), Clip(1)]
        for block in dit.blocks:
            torch.nn.init.zeros_(block.cross.out.weight)
        clips[0].words, clips[1].words = torch.randn(2, 3, TEXT).unbind()
        tokens, levels, text = packed(clips, budget=20, max_clips=2)
        first, second = unpack(dit(tokens, levels, text), tokens.grids)
        if pooled:
            assert (first - second).abs().max() > 1e-2
        else:
            assert apart(first, second) <= 1e-6
        swapped = replace(text, states=torch.cat((clips[1].words, clips[0].words, text.states[6:])))
        for out, other in zip(unpack(dit(tokens, levels, swapped), tokens.grids), (second, first), strict=True):
            assert apart(out, other) <= 1e-6


@pytest.mark.parametrize("axis", range(3))
def test_waves_tell_where_a_clip_lies_and_rotations_alone_do_not(axis):
    tokens, levels, text = packed([Clip(1)], budget=9, max_clips=1)
    moved = replace(tokens, positions=tokens.positions + 3 * torch.eye(3)[axis])
    plain, told = network(position=None), network()
    assert apart(plain(moved, levels, text), plain(tokens, levels, text)) <= 2e-5
    assert (told(moved, levels, text) - told(tokens, levels, text)).abs().max() > 1e-2


@pytest.mark.parametrize("changes", WITH_AND_WITHOUT)
def test_what_is_switched_off_has_no_weights(changes):
    names = {name.split(".")[0] for name, _ in network(**changes).named_parameters()}
    assert ("embed_position" in names) == (changes["position"] is not None)
    assert ("embed_pooled" in names) == changes["pooled_text"]


def test_at_birth_blocks_are_identities_and_the_prediction_is_zero():
    dit = network(trained=False)
    tokens, levels, text = packed([Clip(0), Clip(1)], budget=16, max_clips=3)
    assert dit(tokens, levels, text).abs().max() == 0
    seen = []
    for block in dit.blocks:
        block.register_forward_hook(
            lambda _, inputs, output: seen.append(torch.equal(inputs[0], output[0]) and torch.equal(inputs[1], output[1]))
        )
    dit(tokens, levels, text)
    assert seen == [True, True]


def test_at_birth_the_first_step_can_learn():
    """Zero gates must not stop the gradient: the output layer learns first, then everything."""
    dit = network(trained=False)
    inputs = packed([Clip(0), Clip(1)], budget=13, max_clips=2)
    optimizer = torch.optim.SGD(dit.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (dit(*inputs) - 1).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in dit.parameters())


def test_rope_must_fit_the_heads():
    with pytest.raises(ValueError, match=r"8 wide \(dit\.width=32 / dit\.heads=4\), and dit\.rope turns heads of 16 channels"):
        network(heads=4)
    with pytest.raises(ValueError, match=r"10\.6667 wide \(dit\.width=32 / dit\.heads=3\)"):
        network(heads=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 0}, r"dit\.depth is 0; it must be above 0"),
        ({"heads": 0}, r"dit\.heads is 0"),
        ({"kv_heads": 0}, r"dit\.kv_heads is 0"),
        ({"kv_heads": -1}, r"dit\.kv_heads is -1"),
        ({"mlp_ratio": -1.0}, r"dit\.mlp_ratio is -1"),
        ({"position": partial(wave_positions, count=0, time_scale=1.0)}, r"dit\.position\.count is 0"),
    ],
)
def test_sizes_of_nothing_are_refused_by_their_keys(changes, said):
    with pytest.raises(ValueError, match=said):
        network(**changes)
    with pytest.raises(ValueError, match=r"rope\.theta is 0"):
        AxialRope(axes=[4, 6, 6], time_scale=4.0, theta=0.0)
