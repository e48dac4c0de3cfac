"""Packed captions."""

import pytest
import torch

from sora.text.packing import pack_text


def test_captions_stand_in_their_clips_segments_and_the_rest_is_the_paddings():
    states = [torch.randn(3, 4), torch.randn(1, 4), torch.randn(0, 4)]
    text = pack_text(states, budget=9, max_clips=4)
    assert text.segments.lengths == (3, 1, 0, 0, 5)
    torch.testing.assert_close(text.states[:4], torch.cat(states), atol=0, rtol=0)
    assert text.states[4:].abs().sum() == 0
    assert pack_text(states, budget=None, max_clips=3).segments.lengths == (3, 1, 0, 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"2 captions of 6 tokens.*5 text tokens.*data\.text_budget"):
        pack_text([torch.zeros(3, 4)] * 2, budget=5, max_clips=2)
    with pytest.raises(ValueError, match=r"plan\.max_clips"):
        pack_text([torch.zeros(3, 4)] * 3, budget=50, max_clips=2)
