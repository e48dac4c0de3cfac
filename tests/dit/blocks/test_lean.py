"""The lean block is the default block: weights, outputs, gradients; and it keeps much less."""

import pytest
import torch

from experiments.benchmarks.activation_bytes import kept_bytes
from sora.dit.attention import patterns
from sora.dit.attention.dense import dense_attention
from sora.dit.blocks.lean import lean_block
from sora.dit.dit import cross_block
from sora.dit.layers.mlps import swiglu
from sora.dit.layers.modulation import ZeroModulation
from sora.tokens import Segments
from tests.dit.test_dit import Clip, network, packed


def both(**changes):
    torch.manual_seed(0)
    plain = network(block=cross_block, **changes).double()
    fused = network(block=lean_block, **changes).double()
    fused.load_state_dict(plain.state_dict())
    return plain, fused


@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_heads": 1}, {"modulation": ZeroModulation()}, {"pattern": patterns.factorised_attention}, {"attention": dense_attention}],
    ids=["plain", "gqa", "own", "factorised", "attention whose gradients lie apart"],
)
def test_the_lean_block_is_the_default_one(changes):
    plain, fused = both(**changes)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in fused.named_parameters()]
    tokens, levels, text = packed([Clip(number) for number in range(4)], budget=25, max_clips=5)
    gradients = []
    outputs = []
    for net in (plain, fused):
        patches = tokens.patches.double().requires_grad_()
        states = text.states.double().requires_grad_()
        out = net(tokens.with_patches(patches), levels, type(text)(states, text.segments))
        out.square().sum().backward()
        outputs.append(out.detach())
        gradients.append([patches.grad, states.grad, *(parameter.grad for parameter in net.parameters())])
    # In float64, but for the rotations of the default block.
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6 * float(theirs.abs().max().clamp_min(1)), rtol=0)


def test_in_half_precision_it_keeps_less_than_two_thirds():
    kept = []
    tokens, levels, text = packed([Clip(1)] * 6, budget=60, max_clips=6, max_levels=30)
    inputs = tokens.with_patches(tokens.patches.bfloat16()), levels, type(text)(text.states[:1].bfloat16(), Segments.of([0] * 6 + [1]))
    for net in both(position=None):
        net = net.bfloat16()
        kept.append(kept_bytes(lambda net=net: net(*inputs), besides=net.parameters()))
    assert kept[1] <= 0.66 * kept[0]


def test_under_mixed_precision_tokens_stay_in_float32_as_in_the_default_block():
    plain, fused = (net.float() for net in both())
    inputs = packed([Clip(0), Clip(1)], budget=14, max_clips=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = []
        for net in (plain, fused):
            net.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out[0]))
            net(*inputs)
    assert seen[0].dtype == seen[1].dtype == torch.float32
    assert (seen[0] - seen[1]).norm() <= 0.02 * seen[0].norm()


def test_at_birth_it_is_the_identity():
    net = network(trained=False, block=lean_block)
    assert net(*packed([Clip(0), Clip(1)], budget=16, max_clips=3)).abs().max() == 0
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(torch.equal(inputs[0], output[0])))
    net(*packed([Clip(0), Clip(1)], budget=16, max_clips=3))
    assert seen == [True, True]


def test_what_it_does_not_fuse_it_refuses_by_name():
    with pytest.raises(ValueError, match=r"dit\.mlp gives a SwiGluMlp.*sora\.dit\.cross_block"):
        network(block=lean_block, mlp=swiglu)
