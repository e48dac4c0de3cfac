"""The byte encoder that trains with the network."""

import torch

from sora.text.byte import ByteEncoder
from sora.text.packing import pack_text

ENCODER = ByteEncoder(width=16, depth=2, reach=2, max_tokens=12)


def states(module, captions, *, budget=None):
    text = module(pack_text(ENCODER.encode(captions), budget=budget, max_clips=len(captions)))
    return text.states.split(list(text.segments.lengths))[: len(captions)]


def test_a_caption_does_not_see_its_neighbours():
    module = ENCODER.text_module()
    captions = ["a red ball", "", "ein roter Bällchen", "b"]
    together = states(module, captions, budget=64)
    for caption, packed in zip(captions, together, strict=True):
        torch.testing.assert_close(states(module, [caption])[0], packed, atol=1e-6, rtol=0)


def test_order_of_letters_matters_and_stored_numbers_survive_half_precision():
    module = ENCODER.text_module()
    assert (states(module, ["ab cd"])[0] - states(module, ["dc ba"])[0]).abs().max() > 0.1
    for state in ENCODER.encode(["\x00ÿ~", ""]):
        torch.testing.assert_close(state.half().float(), state, atol=0, rtol=0)


def test_long_captions_are_cut_and_the_fingerprint_says_where():
    assert [len(state) for state in ENCODER.encode(["x" * 50, ""])] == [12, 1]
    other = ByteEncoder(width=16, depth=2, reach=2, max_tokens=13)
    assert other.fingerprint != ENCODER.fingerprint
    assert ByteEncoder(width=32, depth=1, reach=1, max_tokens=12).fingerprint == ENCODER.fingerprint


def test_every_weight_learns():
    module = ENCODER.text_module()
    torch.cat(states(module, ["a red ball", "go"])).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
