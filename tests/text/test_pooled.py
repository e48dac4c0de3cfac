"""A vector for the whole caption travels as its first row and is parted from its words where a pack reaches the network."""

import pytest
import torch

from sora.text.classes import ClassEncoder
from sora.text.encoder import IdentityText
from sora.text.limits import CaptionLimit, cuts, with_fill
from sora.text.packing import pack_text
from sora.text.pooled import PooledCaptions, PooledText
from sora.tokens import Segments, TextTokens


class Lengths:
    """A vector for a caption: how long it is, `width` times."""

    name = "lengths"

    def __init__(self, width=3, fingerprint="a"):
        self.width, self.fingerprint, self.place = width, fingerprint, "cpu"

    def to(self, device):
        self.place = device

    def models(self):
        return []

    def limits(self):
        return [CaptionLimit("text.max_tokens", 2, lambda captions, tokens: [caption[tokens:] for caption in captions])]

    def encode(self, captions):
        return [torch.full((self.width,), float(len(caption))) for caption in captions]


class Letters:
    """A word of 5 numbers for each letter, and one more for the end."""

    name, width = "letters", 5

    def __init__(self, fingerprint="a"):
        self.fingerprint, self.place = fingerprint, "cpu"

    def to(self, device):
        self.place = device

    def encode(self, captions):
        return [torch.tensor([*map(ord, caption), 0.0])[:, None].repeat(1, 5) for caption in captions]

    def models(self):
        return []

    def limits(self):
        return [CaptionLimit("text.max_tokens", 4, lambda captions, tokens: [caption[tokens:] for caption in captions])]

    def text_module(self):
        return IdentityText()


# Clips, then empty room, then the padding: as many words as clips as channels, a caption of its vector alone, no padding, only padding.
LENGTHS = [(3, 3, 3, 0), (1, 4, 0, 0, 6), (2, 0), (5, 1, 1, 0, 0, 1), (0, 0, 7), (0, 3, 0, 2, 4)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_first_row_of_every_caption_is_taken_out_as_by_a_loop(lengths):
    torch.manual_seed(0)
    states = torch.randn(sum(lengths), 5, requires_grad=True)
    segments = Segments.of(lengths)
    found = PooledText(3)(TextTokens(states, segments))
    parts = [*states.split(list(lengths))]
    words = [part[1:] for part in parts[:-1]] + [parts[-1]]
    missing = sum(lengths) - sum(map(len, words))
    expected = torch.cat((*words, torch.zeros(missing, 5)))
    assert torch.equal(found.states, expected)
    kept = tuple(max(0, length - 1) for length in lengths[:-1])
    assert found.segments.lengths == (*kept, lengths[-1] + missing) and found.segments.total == sum(lengths)
    assert found.segments.cu_seqlens.tolist() == found.segments.host.tolist() and found.segments.cu_seqlens.dtype == torch.int32
    vectors = [part[0, :3] if len(part) else torch.zeros(3) for part in parts[:-1]] + [torch.zeros(3)]
    assert torch.equal(found.pooled, torch.stack(vectors))
    weight, other = torch.randn_like(expected), torch.randn_like(found.pooled)
    ((found.states * weight).sum() + (found.pooled * other).sum()).backward()
    gradient, states.grad = states.grad.clone(), None
    ((expected * weight).sum() + (torch.stack(vectors) * other).sum()).backward()
    assert torch.equal(gradient, states.grad)


def test_each_of_the_two_cuts_captions_by_its_own_key():
    found = cuts(PooledCaptions(states=Letters(), whole=Lengths()).limits(), ["abcdef", "abc", "a"])
    assert [(cut.key, cut.captions, cut.first, cut.lost) for cut in found] == [
        ("text.states.max_tokens", 1, "abcdef", "ef"),
        ("text.whole.max_tokens", 2, "abcdef", "cdef"),
    ]
    assert [limit.key for limit in with_fill(PooledCaptions(states=Letters(), whole=Lengths()).limits(), 3)] == [
        "dit.text.fill",
        "text.whole.max_tokens",
    ]


def test_what_was_stored_is_what_both_encoders_said():
    encoder = PooledCaptions(states=Letters(), whole=Lengths())
    captions = ["red", "", "a ball"]
    stored = encoder.encode(captions)
    assert encoder.width == 5 and [tuple(item.shape) for item in stored] == [(5, 5), (2, 5), (8, 5)]
    found = encoder.text_module()(pack_text([item.half().float() for item in stored], budget=20, max_clips=4))
    assert found.segments.lengths == (4, 1, 7, 0, 8) and torch.equal(found.pooled[:, 0], torch.tensor([3.0, 0, 6, 0, 0]))
    for words, caption in zip(found.states[:12].split([4, 1, 7]), captions, strict=True):
        assert torch.equal(words, Letters().encode([caption])[0])
    assert not found.states[12:].any()


def test_both_encoders_go_to_a_device():
    both = PooledCaptions(states=Letters(), whole=Lengths())
    both.to("meta")
    assert both.states.place == both.whole.place == "meta"


def test_a_change_of_either_encoder_is_another_cache():
    marks = [
        PooledCaptions(states=Letters(a), whole=Lengths(fingerprint=b)).fingerprint
        for a, b in (("x", "y"), ("x", "z"), ("z", "y"), ("y", "x"))
    ]
    assert len(set(marks)) == 4


def test_a_vector_that_is_wider_than_a_word_is_refused():
    with pytest.raises(ValueError, match=r"text\.whole gives 6 numbers.*text\.states 5"):
        PooledCaptions(states=Letters(), whole=Lengths(6)).encode(["a"])


def test_shapes_do_not_depend_on_the_captions_and_nothing_is_read_back():
    """On the device "meta" nothing can be read, and the host's numbers are those of the CPU."""
    for lengths in ((3, 1, 0, 8), (1, 1, 1, 9), (0, 0, 0, 12)):
        text = TextTokens(torch.randn(12, 5), Segments.of(lengths)).to("meta")
        found = PooledText(3)(text)
        assert found.states.shape == (12, 5) and found.pooled.shape == (4, 3) and found.states.is_meta
        assert not found.segments.host.is_meta


def test_a_class_is_a_one_among_zeros_and_the_empty_caption_is_none():
    encoder = ClassEncoder(count=3)
    assert encoder.width == 4
    assert torch.equal(torch.cat(encoder.encode(["2", "", "0"])), torch.eye(4)[[2, 3, 0]])
    assert encoder.fingerprint != ClassEncoder(count=4).fingerprint
    for wrong in ("3", "-1", "cat", "1.0"):
        with pytest.raises(ValueError, match=rf"'{wrong}' is no class.*from 0 to 2"):
            encoder.encode(["1", wrong])
    with pytest.raises(ValueError, match=r"text\.count=0"):
        ClassEncoder(count=0)
