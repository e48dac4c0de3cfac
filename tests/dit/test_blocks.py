"""The laws of every kind of block, under every kind of modulation: what the default network's tests say holds for all of them."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from sora.dit.attention.patterns import causal_attention, factorised_attention, full_attention, windowed_attention
from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.plain import plain_block
from sora.dit.blocks.single import dual_then_single_block, single_block
from sora.dit.dit import cross_block
from sora.dit.layers.modulation import LoRAModulation, SingleModulation, ZeroModulation
from sora.dit.layers.norms import affine_layer_norm, layer_norm_per_head, no_norm, rms_across_heads, rms_norm
from sora.tokens import NoiseLevels, Segments, join
from tests.dit.test_dit import Clip, apart, network, outputs_and_gradients, packed

BLOCKS = {
    "cross": cross_block,
    "plain": plain_block,
    "parallel": parallel_block,
    "dual": dual_block,
    "single": single_block,
    "dual then single": partial(dual_then_single_block, dual=1),
    "expert": expert_block,
}
JOINT = ("dual", "single", "dual then single", "expert")
MODULATIONS = {"single": SingleModulation(), "zero": ZeroModulation(), "lora": LoRAModulation(rank=3)}
KINDS = [
    pytest.param({"block": BLOCKS[block], "modulation": MODULATIONS[how]}, id=f"{block}-{how}")
    for block, how in product(BLOCKS, MODULATIONS)
]


# Each block once, each of the other choices with two of them.
MIXED = [
    {"block": cross_block, "modulation": ZeroModulation()},
    {"block": plain_block, "qk_norm": no_norm},
    {"block": parallel_block, "modulation": LoRAModulation(rank=3), "kv_heads": 1},
    {"block": dual_block, "norm": partial(rms_norm, eps=1e-6), "qk_norm": partial(rms_across_heads, eps=1e-5)},
    {"block": partial(dual_then_single_block, dual=1), "modulation": ZeroModulation(), "kv_heads": 1},
    {"block": single_block, "qk_norm": partial(layer_norm_per_head, eps=1e-6), "pooled_text": False},
    {"block": expert_block, "norm": partial(affine_layer_norm, eps=1e-5), "modulation": LoRAModulation(rank=2), "position": None},
]
NAMES = ["cross", "plain", "parallel", "dual", "dual then single", "single", "expert"]


@pytest.mark.parametrize("changes", MIXED, ids=NAMES)
def test_a_clip_does_not_see_its_neighbours(changes):
    dit, clips = network(**changes), [Clip(number) for number in range(4)]
    together, gradients = outputs_and_gradients(dit, clips, budget=22, max_clips=4)
    alone = [outputs_and_gradients(dit, [clip], budget=clip.grid.tokens, max_clips=1) for clip in clips]
    for out, (single_out, _) in zip(together, alone, strict=True):
        assert apart(out, single_out[0]) <= 3e-6
    for whole, *parts in zip(gradients, *(grads for _, grads in alone), strict=True):
        assert (whole - sum(parts)).norm() <= 2e-5 * max(1e-3, sum(part.norm() for part in parts))


@pytest.mark.parametrize("changes", MIXED, ids=NAMES)
def test_no_gradient_reaches_another_clip(changes):
    dit, clips = network(**changes), [Clip(number) for number in range(4)]
    tokens, levels, text = packed(clips, budget=25, max_clips=5)
    patches, states = tokens.patches.requires_grad_(), text.states.requires_grad_()
    dit(tokens, levels, text)[4:13].sum().backward()
    owner = torch.arange(6).repeat_interleave(torch.tensor(tokens.segments.lengths))
    reader = torch.arange(6).repeat_interleave(torch.tensor(text.segments.lengths))
    assert patches.grad[owner != 1].abs().max() == 0
    assert states.grad[reader != 1].abs().max() == 0
    assert patches.grad[owner == 1].abs().max() > 0
    assert states.grad[reader == 1].abs().max() > 0


@pytest.mark.parametrize("changes", MIXED, ids=NAMES)
def test_order_and_padding_are_irrelevant(changes):
    dit, clips = network(**changes), [Clip(0), Clip(1), Clip(2)]
    tight, gradients = outputs_and_gradients(dit, clips, budget=21, max_clips=3, max_levels=10, max_words=5)
    loose, others = outputs_and_gradients(dit, clips[::-1], budget=31, max_clips=7, max_levels=19, max_words=40)
    for a, b in zip(tight, loose[::-1], strict=True):
        assert apart(a, b) <= 3e-6
    for a, b in zip(gradients, others, strict=True):
        assert apart(a, b) <= 3e-5


@pytest.mark.parametrize("changes", KINDS)
def test_at_birth_blocks_are_identities_and_the_prediction_is_zero(changes):
    dit = network(trained=False, **changes)
    inputs = packed([Clip(0), Clip(1)], budget=16, max_clips=3)
    seen = []
    for block in dit.blocks:
        block.register_forward_hook(
            lambda _, inputs, output: seen.append(all(torch.equal(*pair) for pair in zip(inputs, output, strict=False)))
        )
    assert dit(*inputs).abs().max() == 0
    assert seen == [True, True]


@pytest.mark.parametrize("changes", KINDS)
def test_at_birth_the_first_steps_reach_every_weight(changes):
    dit = network(trained=False, **changes)
    inputs = packed([Clip(0), Clip(1)], budget=13, max_clips=2)
    optimizer = torch.optim.SGD(dit.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        (dit(*inputs) - 1).square().mean().backward()
        optimizer.step()
    still = [name for name, parameter in dit.named_parameters() if not parameter.grad.abs().max() > 0]
    assert still == (
        ["blocks.1.text_attention.q_norm.gain"] if changes["block"] is dual_block else []
    )  # what words ask is read by nobody there


@pytest.mark.parametrize("block", JOINT)
def test_words_have_the_highest_level_of_their_clip(block):
    """A frame that is a condition, at level 0, changes nothing of how the words are modulated; and equal levels are one level."""
    dit, clip = network(block=BLOCKS[block]), Clip(1)
    clip.levels = torch.full((3,), 0.6)
    tokens, levels, text = packed([clip], budget=9, max_clips=1, max_levels=5)
    one = NoiseLevels(torch.tensor([0.6, 0.1]), torch.zeros(9, dtype=torch.int64), owners=torch.tensor([0, 1]))
    assert apart(dit(tokens, levels, text), dit(tokens, one, text)) <= 1e-6
    lower = replace(levels, levels=levels.levels.index_fill(0, torch.tensor([0]), 0.2))
    higher = replace(levels, levels=levels.levels.index_fill(0, torch.tensor([0]), 0.9))
    seen = []
    hook = dit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].text_levels.level[0]))
    for given in (levels, lower, higher):
        dit(tokens, given, text)
    hook.remove()
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])


PATTERNS = {
    "factorised": factorised_attention,
    "windowed": partial(windowed_attention, frames=1, rows=0, columns=1),
    "causal": partial(causal_attention, frames=1),
}


@pytest.mark.parametrize("block", JOINT)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_of_patches_and_words_refuse_patterns_of_patches_alone(block, pattern):
    with pytest.raises(
        ValueError, match=rf"dit\.block\._target_=.*takes dit\.pattern\._target_=sora\.dit\.full_attention only, not {pattern}"
    ):
        network(block=BLOCKS[block], pattern=PATTERNS[pattern])
    network(block=BLOCKS[block], pattern=partial(full_attention))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block not in JOINT])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_of_patches_take_every_pattern(block, pattern):
    """Packed as alone, and not as under the full pattern."""
    dit, clips = network(block=BLOCKS[block], pattern=PATTERNS[pattern]), [Clip(number) for number in range(3)]
    together = outputs_and_gradients(dit, clips, budget=22, max_clips=4)[0]
    for clip, out in zip(clips, together, strict=True):
        assert apart(out, outputs_and_gradients(dit, [clip], budget=clip.grid.tokens, max_clips=1)[0][0]) <= 3e-6
    whole = outputs_and_gradients(network(block=BLOCKS[block]), clips, budget=22, max_clips=4)[0]
    assert (together[1] - whole[1]).abs().max() > 1e-3


@pytest.mark.parametrize("changes", MIXED, ids=NAMES)
def test_bf16_is_the_same_network_less_exactly(changes):
    dit = network(**changes)
    inputs = packed([Clip(0), Clip(1)], budget=16, max_clips=3)
    exact = dit(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = dit(*inputs)
    rough.float().square().mean().backward()
    assert (rough - exact)[:13].norm() <= 0.05 * exact[:13].norm()


def test_what_cannot_be_built_is_refused_by_its_key():
    with pytest.raises(ValueError, match=r"dit\.kv_heads=3 does not divide dit\.heads=2"):
        network(kv_heads=3)
    with pytest.raises(ValueError, match=r"block\.dual=2 of dit\.depth=2"):
        network(block=partial(dual_then_single_block, dual=2))
    with pytest.raises(ValueError, match=r"modulation\.rank is 0"):
        LoRAModulation(rank=0)


def test_fewer_keys_are_as_many_keys_that_are_equal():
    """Grouped queries with one head of keys are full attention whose heads of keys and values repeat it."""
    few, many = network(kv_heads=1, depth=1), network(depth=1)
    shared = {name: value for name, value in few.state_dict().items() if name in many.state_dict()}
    q, kv = few.blocks[0].attention.q, few.blocks[0].attention.kv
    many.load_state_dict(shared, strict=False)
    whole = many.blocks[0].attention.qkv
    for name in ("weight", "bias"):
        k, v = getattr(kv, name).data.chunk(2)
        getattr(whole, name).data.copy_(torch.cat((getattr(q, name).data, k, k, v, v)))
    inputs = packed([Clip(0), Clip(1)], budget=16, max_clips=3)
    assert apart(few(*inputs), many(*inputs)) <= 1e-6


@pytest.mark.parametrize(("first", "second"), [((4, 4, 4), (4, 4, 4)), ((3, 1, 0, 5), (0, 2, 0, 1)), ((0, 0, 2), (3, 0, 0)), ((1,), (0,))])
def test_joined_axes_are_those_of_a_loop(first, second):
    joined = join(Segments.of(first), Segments.of(second))
    named = [[f"{kind}{g}" for g, length in enumerate(lengths) for _ in range(length)] for kind, lengths in (("a", first), ("b", second))]
    expected = [
        name
        for g, pair in enumerate(zip(first, second, strict=True))
        for kind, length in zip("ab", pair, strict=True)
        for name in [f"{kind}{g}"] * length
    ]
    both = [*named[0], *named[1]]
    assert [both[place] for place in joined.order.tolist()] == expected
    assert joined.order[joined.places].tolist() == list(range(len(both)))
    whole = Segments.of([a + b for a, b in zip(first, second, strict=True)])
    assert joined.segments.lengths == whole.lengths and torch.equal(joined.segments.cu_seqlens, whole.cu_seqlens)


@pytest.mark.long
@pytest.mark.slow
def test_blocks_of_one_kind_are_compiled_once_whatever_is_packed():
    """In a process of its own: the checks of shapes that pytest switches on are nothing that can be compiled."""
    done = subprocess.run([sys.executable, "-m", "tests.dit.compiled_blocks"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"parallel": 1, "dual then single": 2, "expert": 1}
