"""Captions that are filled up to one length."""

import pytest
import torch

from sora.dit.published.texts import filled
from sora.tokens import Segments, TextTokens


@pytest.mark.parametrize("lengths", [(2, 0, 3), (3, 3, 3), (0, 1, 7), (1,), (0, 0, 0)])
def test_captions_are_filled_up_with_zeros_as_by_a_loop(lengths):
    """As many words, captions and channels as each other; an empty one; and padding that is longer than a caption may be."""
    states = torch.randn(sum(lengths), 3, requires_grad=True)
    found = filled(TextTokens(states, Segments.of(lengths)), 3)
    parts = states.split(list(lengths))
    expected = torch.cat([torch.cat((part[:3], torch.zeros(max(0, 3 - len(part)), 3))) for part in parts])
    assert torch.equal(found.states, expected)
    assert found.segments.lengths == (3,) * len(lengths) and found.segments.cu_seqlens.dtype == torch.int32
    weight = torch.randn_like(expected)
    (found.states * weight).sum().backward()
    gradient, states.grad = states.grad.clone(), None
    (expected * weight).sum().backward()
    assert torch.equal(gradient, states.grad)
