"""A captioner sees its own clip alone, its text is causal, padding is harmless, and everything in it is trained."""

import pytest
import torch

from sora.captioner.words import PADDING
from sora.training.captioner_task import StepPack
from tests.captioner.making import ATTRIBUTES, STAGES, batch, network, task, words

WORDS = words()
CLIPS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def net():
    return network(WORDS)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_clip_does_not_see_its_neighbours_nor_the_padding(net):
    lines = torch.tensor([[WORDS.start("dense"), *WORDS.encode("A large red circle moves")]] * len(CLIPS))
    seen = net.see(batch(CLIPS).tokens)
    logits = net.write(lines, seen, torch.arange(len(CLIPS)))
    for place, clip in enumerate(CLIPS):
        alone = net.see(batch([clip], padding=0, max_clips=1).tokens)
        for name in ATTRIBUTES.values:
            assert close(alone.answers[name][0], seen.answers[name][place])
        assert close(alone.whole[0], seen.whole[place])
        assert close(net.write(lines[:1], alone, torch.tensor([0]))[0], logits[place])


@torch.no_grad()
def test_another_clip_changes_nothing_even_if_its_numbers_are_not_finite(net):
    spoiled = batch([0, 1])
    spoiled.tokens.patches[-4 - 7 :] = torch.nan  # the second clip, and the padding
    assert close(net.see(spoiled.tokens).whole[0], net.see(batch([0, 1]).tokens).whole[0])


@torch.no_grad()
def test_answers_follow_their_clips_through_a_permutation(net):
    order = [2, 0, 3, 1]
    one, other = net.see(batch(CLIPS).tokens), net.see(batch([CLIPS[place] for place in order]).tokens)
    for name in ATTRIBUTES.values:
        assert close(one.answers[name][order], other.answers[name])


@torch.no_grad()
def test_places_and_times_are_seen(net):
    plain, moved = batch([0]).tokens, batch([0]).tokens
    moved.positions[: plain.real, 0] *= 2
    assert not close(net.see(plain).whole, net.see(moved).whole)


@torch.no_grad()
def test_hidden_tokens_are_as_if_they_were_not_there(net):
    whole = batch([0]).tokens
    kept = torch.ones(len(whole.patches), dtype=torch.bool)
    kept[3] = False
    other = whole.with_patches(whole.patches.index_fill(0, torch.tensor([3]), 9.0))
    assert close(net.see(whole, kept=kept).whole, net.see(other, kept=kept).whole)
    assert not close(net.see(whole, kept=kept).whole, net.see(whole).whole)


@torch.no_grad()
def test_text_is_causal_and_padding_harmless(net):
    seen = net.see(batch([0]).tokens)
    line = torch.tensor([[WORDS.start("short"), *WORDS.encode("a red circle moves left")]])
    logits = net.write(line, seen, torch.tensor([0]))
    for place in range(1, line.shape[1]):
        changed = line.clone()
        changed[0, place] = WORDS.encode("blue")[0]
        assert close(net.write(changed, seen, torch.tensor([0]))[0, :place], logits[0, :place])
        assert close(net.write(line[:, :place], seen, torch.tensor([0]))[0], logits[0, :place])
    longer = torch.nn.functional.pad(line, (0, 5), value=PADDING)
    assert close(net.write(longer, seen, torch.tensor([0]))[0, : line.shape[1]], logits[0])
    assert close(net.read(longer), net.read(line)) and not close(net.read(line), net.read(line.flip(1)))


def test_every_parameter_has_a_gradient_at_the_end_and_one_of_zero_before():
    made = task(steps=10, scrambled=True)
    for step, trains in ((0, False), (9, True)):
        made.zero_grad()
        (prepared,) = made.prepare([StepPack(batch(CLIPS), step)], torch.device("cpu"))
        made(prepared).total.backward()
        lacking = [name for name, value in made.named_parameters() if value.grad is None]
        idle = {name for name, value in made.named_parameters() if value.grad is not None and not value.grad.any()}
        assert not lacking
        assert (any(name.startswith("network.decoder") for name in idle)) is not trains
        # the table of values reaches the loss through the decoder alone; the softmax over keys forgets a shift of all of them
        assert not trains or not idle, idle


def test_weights_of_losses_are_a_function_of_the_step_alone():
    objective = task(steps=10).objective
    assert objective.weights(0.0) == objective.weights(0.29) == {"contrast": 0.3, "attributes": 0.5}
    assert objective.weights(0.3) == {"contrast": 0.3, "attributes": 0.5, "short": 1.0}
    assert objective.weights(0.6) == objective.weights(1.0) == {name: value for name, value in STAGES[2].items() if name != "until"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the last is 1"),
        ([{"until": 0.5, "short": 1.0}], "the last is 1"),
        ([{"until": 0.5, "short": 1.0}, {"until": 0.5, "dense": 1.0}, {"until": 1, "dense": 1.0}], "above that of the one before"),
        ([{"short": 1.0}], "each has an `until`"),
        ([{"until": 1, "short": 0.0}], "every stage has one above 0"),
        ([{"until": 1, "short": -1.0}], "weights are 0 or more"),
        ([{"until": 1, "long": 1.0}], "weighs long, which is neither attributes nor contrast nor one of kinds="),
    ],
)
def test_stages_that_cannot_be_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        task(steps=4, stages=stages)


def test_an_attribute_may_be_called_as_a_method_is():
    from sora.captioner import WordAttributes

    kinds = WordAttributes(words={"type": ["indoors", "outdoors"], "keys": ["two", "three"]}, facts=False)
    assert set(network(WORDS, attributes=kinds).see(batch([0]).tokens).answers) == {"type", "keys"}
