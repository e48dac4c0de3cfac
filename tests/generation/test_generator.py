"""Samples follow from their own request: not from their pack, its order or its budget. With a perfect network they are exact."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sora.diffusion.exponential import dpm_solver, unipc
from sora.diffusion.guidance import guide
from sora.diffusion.levels import constant_shift, shift_by_tokens
from sora.diffusion.path import Straight, VariancePreserving
from sora.diffusion.prediction import clean_prediction, noise_prediction, velocity_prediction
from sora.diffusion.samplers import euler, heun
from sora.generation.generator import Generator, Recipe, Request, Stopped, fill_packs
from sora.patches.patchifier import Patchifier
from sora.vae.vae import VideoVAE

PLAIN = partial(constant_shift, value=1.0)
NOISY = partial(dpm_solver, eta=1.0)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    settings = {"stem": (2, 4, 4), "widths": (8, 8), "blocks": (1, 1), "decoder_blocks": (1, 1), "strides": ((2, 1, 1),)}
    return VideoVAE(latent_channels=4, kernels=((1, 3, 3), (3, 3, 3)), noise=0.05, **settings).eval()


class Perfect:
    """Knows the data: every latent of a clip is its prompt's number. Records what it was shown."""

    def __init__(self, kind=velocity_prediction):
        self.kind, self.calls = kind, []

    def __call__(self, tokens, levels, text):
        self.calls.append((tokens, levels, text))
        t, x = levels.spread()[:, None], tokens.patches
        lengths = tokens.segments.lengths
        numbers = torch.cat([text.states[start : start + 1, 0] for start in text.segments.cu_seqlens[: len(tokens.grids)].tolist()])
        x0 = numbers.repeat_interleave(torch.tensor(lengths[: len(tokens.grids)]))[:, None].expand_as(x)
        if self.kind is clean_prediction:
            return x0
        return (x - x0) / t  # eps - x0 on the straight path


def encode(captions):
    """One state of one channel: the number that the caption is; captions of more words have more states."""
    return [torch.full((1 + len(caption.split()), 1), float(caption.split()[0]) if caption else 0.0) for caption in captions]


def make(vae, *, dit=None, scale=1.0, budget=200, kind=velocity_prediction, shift=PLAIN, sampler=euler, steps=4, path=None):
    recipe = Recipe(sampler=sampler, guidance=partial(guide, scale=scale), steps=steps, shift=shift)
    return Generator(
        dit=dit or Perfect(kind),
        encode=encode,
        text=lambda text: text,
        vae=vae,
        patchifier=Patchifier(size=(1, 2, 2)),
        path=path or Straight(),
        prediction=kind,
        recipe=recipe,
        token_budget=budget,
    )


def request(prompt, sample, frames=5, height=16, width=16, **more):
    return Request(prompt=prompt, frames=frames, height=height, width=width, fps=8.0, seed=1, sample=sample, **more)


MIXED = [request("0.5", 0), request("-1 two words", 1, frames=1), request("2", 2, height=8, width=24, frames=9), request("0.25", 3)]


@pytest.mark.parametrize("kind", [velocity_prediction, clean_prediction])
@pytest.mark.parametrize("sampler", [euler, heun, unipc, NOISY])
def test_each_clip_of_a_mixed_pack_becomes_what_its_prompt_says(vae, kind, sampler):
    latents = make(vae, kind=kind, sampler=sampler).latents(MIXED)
    for latent, item, number in zip(latents, MIXED, (0.5, -1.0, 2.0, 0.25), strict=True):
        assert latent.shape == (4, *vae.latent_shape(item.frames, item.height, item.width))
        assert torch.allclose(latent, torch.full_like(latent, number), atol=1e-5)


class Curious(Perfect):
    """A network whose answer depends on everything it may depend on."""

    def __call__(self, tokens, levels, text):
        perfect = super().__call__(tokens, levels, text)
        return perfect + torch.sin(3 * tokens.patches) + tokens.positions.sum(1, keepdim=True) * 0.01


@pytest.mark.parametrize("sampler", [euler, unipc, NOISY])
def test_a_sample_does_not_depend_on_what_else_is_made(vae, sampler):
    together = make(vae, dit=Curious(), scale=3.0, sampler=sampler).latents(MIXED)
    apart = make(vae, dit=Curious(), scale=3.0, sampler=sampler, budget=1).latents(list(reversed(MIXED)))
    for one, two in zip(together, reversed(apart), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    alone = make(vae, dit=Curious(), scale=3.0, sampler=sampler).latents([MIXED[2]])
    assert torch.allclose(alone[0], together[2], atol=1e-5)


def test_another_seed_or_sample_number_is_another_clip(vae):
    generator = make(vae)
    starts = [generator.plan(request("1", 0)).start, generator.plan(request("1", 1)).start]
    starts.append(generator.plan(Request(prompt="1", frames=5, height=16, width=16, fps=8.0, seed=2, sample=0)).start)
    assert len({float(start[0, 0]) for start in starts}) == 3
    assert torch.equal(generator.plan(request("other", 0)).start, starts[0])


def test_guidance_is_one_forward_of_twice_the_clips_and_scale_one_of_them_once(vae):
    for scale, copies in ((1.0, 1), (3.0, 2)):
        network = Perfect()
        make(vae, dit=network, scale=scale).latents(MIXED)
        assert [len(tokens.grids) for tokens, _, _ in network.calls] == [copies * len(MIXED)] * 4


def test_one_forward_of_both_predictions_is_two_forwards(vae):
    def apart(ask, *, clips, path):
        def guided(x, t):
            (positive,), (negative,) = ask(x, t, ("text",)), ask(x, t, ("away",))
            return negative + 3.0 * (positive - negative)

        return guided

    requests = [replace(item, negative="0.7 other words") for item in MIXED]
    one, two = make(vae, dit=Curious(), scale=3.0), make(vae, dit=Curious())
    two.recipe = replace(two.recipe, guidance=apart)
    for together, each in zip(one.latents(requests), two.latents(requests), strict=True):
        assert torch.allclose(together, each, atol=1e-6)


def test_guidance_extrapolates_from_the_empty_caption(vae):
    # the velocity is linear in x0, so the clip is u + w (c - u) with the empty caption's number 0
    latent = make(vae, scale=3.0).latents([request("0.5", 0)])[0]
    assert torch.allclose(latent, torch.full_like(latent, 1.5), atol=1e-5)


def test_guidance_leads_away_from_each_clips_own_negative_prompt(vae):
    """u + w (c - u) with the number of the negative caption, also where clips with others, or with none, lie in the same pack."""
    wanted = [request("0.5", 0, negative="1"), request("0.5", 1), request("2", 2, frames=1, negative="-1 of many words"), request("1", 3)]
    network = Perfect()
    found = make(vae, dit=network, scale=3.0, budget=1000).latents(wanted)
    assert len(network.calls) == 4  # one pack
    for latent, number in zip(found, (1 + 3 * (0.5 - 1), 1.5, -1 + 3 * 3, 3.0), strict=True):
        assert torch.allclose(latent, torch.full_like(latent, number), atol=1e-5)
    alone = make(vae, scale=1.0).latents(wanted[:1])[0]
    assert torch.allclose(alone, torch.full_like(alone, 0.5), atol=1e-5)


def test_larger_clips_get_levels_of_their_own(vae):
    network = Perfect()
    make(vae, dit=network, shift=partial(shift_by_tokens, reference=8, power=1.0, least=1.0, most=9.0)).latents([MIXED[0], MIXED[1]])
    shown = network.calls[1][1].spread()  # second step: 3/4 before the shift; 8 tokens and 4
    assert sorted({round(float(level), 4) for level in shown}) == [0.75]
    network = Perfect()
    make(vae, dit=network, shift=partial(shift_by_tokens, reference=4, power=1.0, least=1.0, most=9.0)).latents([MIXED[0], MIXED[1]])
    shown = network.calls[1][1].spread()
    assert shown[:8].tolist() == pytest.approx([2 * 0.75 / 1.75] * 8) and shown[8:].tolist() == pytest.approx([0.75] * 4)


@pytest.mark.parametrize("kind", [velocity_prediction, clean_prediction])
def test_given_frames_are_kept_and_shown_clean(vae, kind):
    given = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = Perfect(kind)
    network_safe = lambda tokens, levels, text: torch.nan_to_num(network(tokens, levels, text))  # noqa: E731
    generator = make(vae, dit=network_safe, kind=kind)
    item = request("0.5", 0, frames=9, given=given)
    clip = generator.generate([item, MIXED[1]])[0]
    assert torch.equal(clip[:1], given) and clip.shape == (9, 16, 16, 3)
    first = generator.patchifier.patchify(vae.encode(given[None])[0])
    for tokens, levels, _ in network.calls:
        assert torch.equal(tokens.patches[:4], first)
        assert (levels.spread()[:4] == 0).all() and (levels.spread()[4:] > 0).all()
    latent = generator.latents([item])[0]
    assert torch.allclose(latent[:, 1:], torch.full_like(latent[:, 1:], 0.5), atol=1e-5)


def test_progress_counts_every_step_once_and_ends_at_the_total(vae):
    seen = []
    make(vae, sampler=heun, budget=12).latents(MIXED, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert {done for done, _ in seen} == set(range(1, seen[-1][1] + 1))


def test_what_cannot_be_made_is_refused(vae):
    with pytest.raises(ValueError, match="frames=6 is not 1 \\+ a multiple of 4"):
        make(vae).latents([request("1", 0, frames=6)])
    with pytest.raises(ValueError, match="do not divide into patches"):
        make(vae).latents([request("1", 0, height=20)])
    with pytest.raises(ValueError, match="cannot begin a clip"):
        make(vae).latents([request("1", 0, given=torch.zeros(5, 16, 16, 3, dtype=torch.uint8))])
    with pytest.raises(ValueError, match="predicts noise cannot be sampled at noise level 1"):
        make(vae, kind=noise_prediction, path=VariancePreserving()).latents([request("1", 0)])


def test_packs_hold_every_clip_once_within_the_budget():
    tokens = [5, 3, 9, 3, 30, 1, 5, 9]
    packs = fill_packs(tokens, 12)
    assert sorted(number for members in packs for number in members) == list(range(8))
    assert all(sum(tokens[number] for number in members) <= 12 or len(members) == 1 for members in packs)


@pytest.mark.parametrize(("asked", "predictions"), [(1, 0), (2, 1), (7, 6), (9, 8)])
def test_generation_stops_between_predictions_and_decodings(vae, asked, predictions):
    """Two packs of four steps, and decodings: the network has made as many predictions as `stop` was asked before."""
    dit, count = Perfect(), iter(range(1, 100))
    generator = make(vae, dit=dit, budget=12)
    with pytest.raises(Stopped):
        generator.generate([request("0.5", 0), request("2", 1)], stop=lambda: next(count) == asked)
    assert len(dit.calls) == predictions


def test_what_is_not_stopped_is_the_same(vae):
    whole, asked = make(vae).generate(MIXED), []
    found = make(vae).generate(MIXED, stop=lambda: asked.append(1) is not None)
    assert len(asked) > 4 and all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
