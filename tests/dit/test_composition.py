"""Options of the network side by side: every two values of two options meet in some network, and the laws of packing hold in each."""

from functools import partial
from itertools import combinations, product

import pytest
import torch

from sora.dit.attention.patterns import causal_attention, factorised_attention, full_attention, windowed_attention
from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.plain import plain_block
from sora.dit.blocks.single import dual_then_single_block, single_block
from sora.dit.dit import cross_block, gelu
from sora.dit.layers.clip_shape import clip_shape
from sora.dit.layers.mlps import gelu_tanh, swiglu
from sora.dit.layers.modulation import LoRAModulation, SingleModulation, ZeroModulation
from sora.dit.layers.norms import affine_layer_norm, layer_norm_per_head, no_norm, rms_across_heads, rms_norm
from sora.dit.layers.registers import register_tokens
from sora.dit.layers.rope import learned_positions
from sora.patches.packing import unpack
from sora.tokens import NoiseLevels
from tests.dit.test_dit import Clip, apart, network, packed

JOINT = (dual_block, single_block, expert_block)
OPTIONS = {
    "block": [
        cross_block,
        lean_block,
        plain_block,
        parallel_block,
        dual_block,
        single_block,
        partial(dual_then_single_block, dual=1),
        expert_block,
    ],
    "pattern": [
        full_attention,
        factorised_attention,
        partial(windowed_attention, frames=1, rows=1, columns=0),
        partial(causal_attention, frames=-1),
    ],
    "modulation": [SingleModulation(), ZeroModulation(), LoRAModulation(rank=2)],
    "position": [None, partial(learned_positions, count=3, time_scale=4.0)],
    "registers": [None, partial(register_tokens, count=2)],
    "clip_shape": [None, partial(clip_shape, count=3)],
    "pooled_text": [True, False],
    "kv_heads": [None, 1],
    "mlp": [gelu, swiglu, gelu_tanh],
    "norm": [None, partial(rms_norm, eps=1e-6), partial(affine_layer_norm, eps=1e-5)],
    "qk_norm": [None, partial(rms_across_heads, eps=1e-5), partial(layer_norm_per_head, eps=1e-6), no_norm],
}  # None of a norm: the default network's


def refused(chosen) -> str | None:
    """The key that the network says not to go with another one; None for what goes together."""
    block, pattern = chosen.get("block", cross_block), chosen.get("pattern", full_attention)
    if block is lean_block and (chosen.get("norm") or chosen.get("qk_norm") or chosen.get("mlp", gelu) is not gelu):
        return r"dit\.block\._target_=sora\.dit\.lean_block fuses"
    if pattern is not full_attention and chosen.get("registers"):
        return r"dit\.registers have no place"
    if pattern is not full_attention and (block in JOINT or isinstance(block, partial)):
        return r"dit\.block\._target_=.*takes dit\.pattern\._target_=sora\.dit\.full_attention only"
    return None


def covering() -> list[dict]:
    """Choices of all options in which every two values that go together meet, found greedily; and few of them."""
    names = list(OPTIONS)
    pairs = {
        ((a, i), (b, j)) for a, b in combinations(names, 2) for i, j in product(range(len(OPTIONS[a])), range(len(OPTIONS[b])))
    }  # fmt: skip
    wanted = {pair for pair in pairs if refused({name: OPTIONS[name][number] for name, number in pair}) is None}
    found = []
    while wanted:
        chosen = dict(min(wanted))
        for name in names:
            if name not in chosen:
                allowed = [n for n in range(len(OPTIONS[name])) if refused(values({**chosen, name: n})) is None]
                chosen[name] = max(allowed, key=lambda n: sum(pair in wanted for pair in pairs_of({**chosen, name: n})))
        found.append(chosen)
        wanted -= pairs_of(chosen)
    return [values(chosen) for chosen in found]


def pairs_of(chosen) -> set:
    order = {name: place for place, name in enumerate(OPTIONS)}
    return set(combinations(sorted(chosen.items(), key=lambda item: order[item[0]]), 2))


def values(chosen) -> dict:
    return {name: OPTIONS[name][number] for name, number in chosen.items()}


def made(chosen):
    return network(**{name: value for name, value in chosen.items() if value is not None or name not in ("norm", "qk_norm")})


def called(value) -> str:
    inner = value.func if isinstance(value, partial) else value
    return getattr(inner, "__name__", str(inner))


COVERING = covering()


@pytest.mark.parametrize("chosen", COVERING, ids=["-".join(called(value) for value in chosen.values()) for chosen in COVERING])
def test_what_goes_together_obeys_the_laws_of_packing(chosen):
    """A clip alone, packed with others, in another order and with other padding; one level for all of its frames; every gradient finite."""
    net, clips = made(chosen).double(), [Clip(number, torch.float64) for number in range(4)]
    clips[1].levels = torch.full((3,), 0.6)
    inputs = packed(clips, budget=22, max_clips=4)
    out = net(*inputs)
    together = unpack(out, inputs[0].grids)
    backwards = packed(clips[::-1], budget=27, max_clips=6, max_levels=31, max_words=20)
    reversed_ = unpack(net(*backwards).detach(), backwards[0].grids)[::-1]
    for clip, mine, other in zip(clips, together, reversed_, strict=True):
        alone = packed([clip], budget=clip.grid.tokens, max_clips=1)
        single_out = net(*alone).detach()
        assert apart(mine, single_out) <= 1e-12
        assert apart(mine, other) <= 1e-12
    tokens, _, text = packed([clips[1]], budget=9, max_clips=1)
    one = NoiseLevels(torch.tensor([0.6, 0.0]), torch.zeros(9, dtype=torch.int64), owners=torch.tensor([0, 1]))
    assert apart(together[1], net(tokens, one, text).detach()) <= 1e-12
    sum((part * clip.weight).sum() for part, clip in zip(together, clips, strict=True)).backward()
    unread = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.grad is None}
    assert unread == ({"embed_text"} if chosen["block"] is plain_block and not chosen["pooled_text"] else set())
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


def test_what_does_not_go_together_is_refused_by_name():
    names = list(OPTIONS)
    tried = 0
    for a, b in combinations(names, 2):
        for first, second in product(OPTIONS[a], OPTIONS[b]):
            said = refused({a: first, b: second})
            if said is not None:
                tried += 1
                with pytest.raises(ValueError, match=said):
                    made({a: first, b: second})
    assert tried >= 20


def test_a_network_begins_as_nothing_whatever_it_is_made_of():
    for chosen in COVERING:
        chosen = {name: value for name, value in chosen.items() if value is not None or name not in ("norm", "qk_norm")}
        assert network(trained=False, **chosen)(*packed([Clip(0), Clip(1)], budget=16, max_clips=3)).abs().max() == 0
