"""Captions are written clip by clip: no clip's caption depends on its batch, and a wider beam finds no worse one."""

import pytest
import torch

from sora.captioner import write_captions
from sora.captioner.words import END, Words
from tests.captioner.making import batch, network, words

WORDS = words()


@pytest.fixture(scope="module")
def net():
    made = network(WORDS, seed=5)
    with torch.no_grad():  # a decoder that ends some captions early
        made.decoder.out.bias[END] += 2.0
    return made


@pytest.mark.parametrize("beam", [1, 3])
def test_a_clips_caption_does_not_depend_on_its_batch(net, beam):
    clips = [0, 1, 2, 3, 4]
    together = write_captions(net, WORDS, net.see(batch(clips).tokens), "short", beam=beam, most=9)
    assert len({line.text for line in together}) > 1
    for place, clip in enumerate(clips):
        (alone,) = write_captions(net, WORDS, net.see(batch([clip]).tokens), "short", beam=beam, most=9)
        assert (alone.text, alone.whole) == (together[place].text, together[place].whole)
        assert alone.score == pytest.approx(together[place].score, abs=1e-5)


@torch.no_grad()
def test_greedy_is_the_likeliest_word_after_word(net):
    seen = net.see(batch([2]).tokens)
    (line,) = write_captions(net, WORDS, seen, "dense", beam=1, most=6)
    ids = [WORDS.start("dense")]
    while len(ids) < 7 and ids[-1] != END:
        logits = net.write(torch.tensor([ids]), seen, torch.tensor([0]))[0, -1]
        logits[[0, 2, 3, 4]] = -torch.inf
        ids.append(int(logits.argmax()))
    assert line.text == WORDS.decode(ids[1:])


@torch.no_grad()
def test_a_beam_as_wide_as_everything_finds_the_best_caption_of_all():
    letters = Words(kinds=("short",), words=())
    net = network(letters, seed=2)
    seen = net.see(batch([1]).tokens)
    likely = [END, *range(4, len(letters))]

    def mean(ids: tuple[int, ...]) -> float:
        logits = net.write(torch.tensor([[letters.start("short"), *ids[:-1]]]), seen, torch.tensor([0]))[0]
        logits[:, [0, 2, 3]] = -torch.inf
        return float(logits.log_softmax(-1)[range(len(ids)), list(ids)].mean())

    best = max([(END,), *((one, END) for one in likely[1:])], key=mean)
    (line,) = write_captions(net, letters, seen, "short", beam=len(likely) ** 2, most=2)
    assert line.text == letters.decode(best) and line.whole and line.score == pytest.approx(mean(best), abs=1e-5)


def test_a_caption_that_does_not_end_is_told_and_wrong_numbers_are_refused(net):
    seen = net.see(batch([1]).tokens)
    with torch.no_grad():
        kept = net.decoder.out.bias[END].item()
        net.decoder.out.bias[END] = -1e9
        (line,) = write_captions(net, WORDS, seen, "short", beam=2, most=4)
        net.decoder.out.bias[END] = kept
    assert not line.whole and line.text
    for wrong in ({"beam": 0, "most": 3}, {"beam": 1, "most": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            write_captions(net, WORDS, seen, "short", **wrong)
    with pytest.raises(ValueError, match="kind=long"):
        write_captions(net, WORDS, seen, "long", beam=1, most=3)
