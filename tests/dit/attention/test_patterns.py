"""Patterns: who is seen, by the gradients of a whole network of one block and by brute force; the laws of packing hold for each."""

from functools import partial

import pytest
import torch

from sora.dit.attention import patterns
from sora.dit.attention.chunked import chunked_attention
from sora.dit.attention.dense import dense_attention
from sora.dit.attention.layout import Layout, sees
from sora.dit.attention.per_segment import per_segment_attention
from sora.patches.packing import unpack
from tests.dit.test_dit import Clip, apart, network, outputs_and_gradients, packed

PATTERNS = {
    "full": patterns.full_attention,
    "factorised": patterns.factorised_attention,
    "windowed": partial(patterns.windowed_attention, frames=1, rows=1, columns=0),
    "causal": partial(patterns.causal_attention, frames=-1),
    "causal window": partial(patterns.causal_attention, frames=1),
}
# What one block's attention may see, as the reach of a mask: written down here anew, for blocks 0 and 1.
REACHES = {
    "full": [((-1, -1, -1), False)] * 2,
    "factorised": [((0, -1, -1), False), ((-1, 0, 0), False)],
    "windowed": [((1, 1, 0), False)] * 2,
    "causal": [((-1, -1, -1), True)] * 2,
    "causal window": [((1, -1, -1), True)] * 2,
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_lets_tokens_see_what_it_says_and_nothing_else(name, number):
    """The sizes of gradients between all pairs of tokens of a pack are zero exactly where brute force says so."""
    tokens, _, _ = packed([Clip(number) for number in range(4)], budget=25, max_clips=5)
    layout = Layout.of(tokens)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(25, 2, 4, generator=draw) for _ in range(3))
    attend = PATTERNS[name](per_segment_attention, number)
    seen = torch.autograd.functional.jacobian(lambda values: attend(q, k, values, layout).sum((1, 2)), v).abs().sum((2, 3)) > 0
    owner = torch.arange(6).repeat_interleave(torch.tensor(tokens.segments.lengths))
    reach, causal = REACHES[name][number]
    places = layout.coordinates
    assert torch.equal(seen, (owner[:, None] == owner[None]) & sees(places, places, reach=reach, causal=causal))


@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
@pytest.mark.parametrize("name", PATTERNS)
def test_networks_agree_whoever_computes_their_attention(name, backend):
    inputs = packed([Clip(number) for number in range(4)], budget=25, max_clips=5)
    found, expected = (network(pattern=PATTERNS[name], attention=each)(*inputs) for each in (backend, dense_attention))
    assert apart(found, expected) <= 2e-6


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "full"])
def test_packing_its_order_and_its_padding_are_irrelevant(name):
    net, clips = network(pattern=PATTERNS[name]), [Clip(number) for number in range(4)]
    together, gradients = outputs_and_gradients(net, clips, budget=22, max_clips=4)
    alone = [outputs_and_gradients(net, [clip], budget=clip.grid.tokens, max_clips=1) for clip in clips]
    backwards, others = outputs_and_gradients(net, clips[::-1], budget=31, max_clips=6)
    for out, (single, _), other in zip(together, alone, backwards[::-1], strict=True):
        assert apart(out, single[0]) <= 2e-6
        assert apart(out, other) <= 2e-6
    for whole, other, *parts in zip(gradients, others, *(grads for _, grads in alone), strict=True):
        size = sum(part.norm() for part in parts)
        assert (whole - sum(parts)).norm() <= 2e-5 * size
        assert (whole - other).norm() <= 2e-5 * size


@pytest.mark.parametrize("frames", [-1, 1])
def test_causal_networks_never_look_ahead(frames):
    """However deep, no output depends on a later frame; every later one depends on an earlier frame in its reach."""
    net = network(pattern=partial(patterns.causal_attention, frames=frames), depth=3)
    tokens, levels, text = packed([Clip(1)], budget=11, max_clips=2)
    patches = tokens.patches.requires_grad_()
    out = unpack(net(tokens.with_patches(patches), levels, text), tokens.grids)[0].unflatten(0, (3, -1))
    for frame in range(3):
        reached = torch.autograd.grad(out[frame].sum(), patches, retain_graph=True)[0][:9].unflatten(0, (3, -1)).abs().amax((1, 2))
        assert (reached[: frame + 1] > 0).all()
        assert (reached[frame + 1 :] == 0).all()


def test_no_gradient_reaches_another_clip():
    for name, pattern in PATTERNS.items():
        tokens, levels, text = packed([Clip(number) for number in range(4)], budget=25, max_clips=5)
        patches = tokens.patches.requires_grad_()
        unpack(network(pattern=pattern)(tokens, levels, text), tokens.grids)[1].sum().backward()
        owner = torch.arange(6).repeat_interleave(torch.tensor(tokens.segments.lengths))
        assert patches.grad[owner != 1].abs().max() == 0, name
        assert patches.grad[owner == 1].abs().max() > 0, name
