"""Recomputing changes memory, never numbers."""

from functools import cache, partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.activation_bytes import kept_bytes, peak_bytes
from sora.dit.attention import patterns
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.single import dual_then_single_block
from sora.dit.kernels import gelu_mlp as frugal
from sora.dit.layers.modulation import ZeroModulation
from sora.dit.layers.registers import register_tokens
from sora.training import activation_checkpointing as recompute
from tests.dit.test_dit import Clip, network, packed

POLICIES = {
    "none": recompute.recompute_none,
    "full": recompute.recompute_all,
    "every_n": partial(recompute.recompute_every_n, n=2),
    "save_attention": recompute.recompute_all_but_attention,
}


def inputs():
    return packed([Clip(1)] * 6, budget=60, max_clips=6, max_levels=30)


def trained(policy, **changes):
    net = network(depth=4, **changes)
    names = [name for name, _ in net.named_parameters()]
    policy(net)
    assert [name for name, _ in net.named_parameters()] == names
    return net


CHANGES = {
    "cross": {},
    "lean": {"block": lean_block},
    "factorised": {"pattern": patterns.factorised_attention},
    "windowed": {"block": lean_block, "pattern": partial(patterns.windowed_attention, frames=1, rows=1, columns=0), "kv_heads": 1},
    "causal": {"block": parallel_block, "pattern": partial(patterns.causal_attention, frames=-1)},
    "joint": {"block": partial(dual_then_single_block, dual=2), "modulation": ZeroModulation()},
    "expert": {"block": expert_block, "registers": partial(register_tokens, count=2)},
}


def result(policy, which):
    """The output and the gradients of a network that is changed so."""
    net = trained(policy, **CHANGES[which])
    out = net(*inputs())
    out.square().sum().backward()
    return out, [parameter.grad for parameter in net.parameters()]


@cache
def plain(which):
    return result(recompute.recompute_none, which)


@pytest.mark.parametrize("which", CHANGES)
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "none"])
def test_recomputing_changes_no_number(name, which):
    (out, grads), (plain_out, plain_grads) = result(POLICIES[name], which), plain(which)
    assert torch.equal(out, plain_out)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain_grads, strict=True))


@pytest.mark.parametrize("block", [{}, {"block": lean_block}], ids=["cross", "lean"])
def test_what_is_kept_falls_as_each_policy_says(block):
    kept = {}
    for name, policy in POLICIES.items():
        net = trained(policy, position=None, pooled_text=False, **block)
        kept[name] = kept_bytes(partial(net, *inputs()), besides=net.parameters())
    assert kept["full"] < kept["save_attention"] < kept["every_n"] < kept["none"]
    # of 4 blocks, every second one is computed again
    assert kept["every_n"] == pytest.approx((kept["none"] + kept["full"]) / 2, rel=0.05)
    # an output (N, D) and its log-sum-exps a block, beside what `full` keeps, and of lean blocks that of the MLP
    more = 32 + 2 + (32 if block else 0)
    assert kept["save_attention"] - kept["full"] == pytest.approx(4 * 60 * more * 4, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 11])
def test_results_of_mlps_are_paid_with_their_hidden_channels(depth, monkeypatch):
    """However deep the network: a step needs no more memory than without them."""
    peaks = []
    for paid in (0, recompute.PAID):
        monkeypatch.setattr(recompute, "PAID", paid)
        monkeypatch.setattr(frugal, "ROWS", 1)
        net = network(depth=depth, width=64, heads=4, block=lean_block, position=None, pooled_text=False)
        recompute.recompute_all_but_attention(net)
        for value in net.parameters():
            value.grad = torch.zeros_like(value)
        held = [*net.parameters(), *(value.grad for value in net.parameters())]
        tokens, levels, text = packed([Clip(1)] * 20, budget=200, max_clips=20, max_levels=90, max_words=150)
        peaks.append(peak_bytes(lambda net=net, given=(tokens, levels, text): net(*given).square().sum().backward(), besides=held))
    assert peaks[1] <= peaks[0], peaks


def test_what_is_dear_is_not_computed_again_in_lean_blocks():
    """Forwards and backwards of both products, with the first once more; without the second, which `full` computes twice."""
    counts = {}
    for name in ("none", "full", "save_attention"):
        net, given = trained(POLICIES[name], block=lean_block, position=None, pooled_text=False), inputs()
        with FlopCounterMode(display=False) as counter:
            net(*given).square().sum().backward()
        counts[name] = counter.get_total_flops()
    blocks = sum(value.numel() for name, value in net.named_parameters() if name.startswith("blocks") and name.endswith("weight"))
    words = sum(value.numel() for name, value in net.named_parameters() if name.endswith("cross.kv.weight"))
    last = sum(value.numel() for name, value in net.named_parameters() if name.endswith("mlp.down.weight"))
    count, read = len(given[0].patches), len(given[2].states)
    again = 2 * (count * (blocks - words - last) + read * words)
    assert counts["save_attention"] - counts["none"] == pytest.approx(again, rel=0.1)
    assert counts["full"] > counts["save_attention"] + 2 * count * last


def test_attention_is_not_computed_again_when_it_is_saved(monkeypatch):
    calls = []
    op = torch.ops.sora_attend.per_segment

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func) if func is op.default else None
            return func(*args, **(kwargs or {}))

    counts = {}
    for name, policy in POLICIES.items():
        net = trained(policy)
        calls.clear()
        with Count():
            net(*inputs()).square().sum().backward()
        counts[name] = len(calls)
    assert counts == {"none": 8, "full": 16, "every_n": 12, "save_attention": 12}  # to captions it is


@pytest.mark.slow
def test_large_networks_recompute_and_small_ones_do_not():
    size = sum(parameter.numel() for parameter in network(depth=4).parameters())
    for above, expected in ((size, "none"), (size - 1, "save_attention")):
        kept = []
        for policy in (partial(recompute.recompute_by_size, above=above), POLICIES[expected]):
            net = trained(policy)
            kept.append(kept_bytes(partial(net, *inputs()), besides=net.parameters()))
        assert kept[0] == kept[1]


def test_every_zeroth_block_is_refused():
    with pytest.raises(ValueError, match=r"recompute\.n=0 must be at least 1"):
        recompute.recompute_every_n(network(), n=0)
