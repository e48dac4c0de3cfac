"""Each published network against its class in diffusers: the same random weights, through the key map, give the same function.

Ours has all clips of a test in one pack, with padding, and theirs has them one by one: packing changes nothing either.
"""

import json
import subprocess
import sys
from contextlib import nullcontext

import diffusers
import pytest
import torch
from einops import rearrange
from omegaconf import OmegaConf

from sora.config.build import build
from sora.diffusion.objective import pack_levels
from sora.dit.published.keys import _slice, _slices, _unshaped, to_ours, to_theirs, uncovered
from sora.dit.published.network import leaves
from sora.dit.published.options import said
from sora.patches.packing import pack, unpack
from sora.tokens import Grid, Segments, TextTokens
from tests.test_configs import node

pytestmark = pytest.mark.slow  # one by one they are quick, together a third of the quick tests' time
TEXT, POOLED, CLASSES = 10, 6, 5
SMALL = {"width": 48, "depth": 2, "heads": 2}
ROPE = {"rope": {"axes": [8, 8, 8]}}
JOINT = {"width": 64, "depth": 3, "heads": 2, "level": {"pooled_width": POOLED}}


def video(model, clip, **more):
    states = clip.words[None]
    return model(hidden_states=clip.latents[None], timestep=torch.tensor([clip.time]), encoder_hidden_states=states, **more).sample[0]


def wan(model, clip):
    """Its pipeline fills captions up with zeros, which the network reads; here to 9 words."""
    states = torch.nn.functional.pad(clip.words, (0, 0, 0, max(0, 9 - len(clip.words))))[None]
    return model(hidden_states=clip.latents[None], timestep=torch.tensor([clip.time]), encoder_hidden_states=states).sample[0]


def latte(model, clip):
    return video(model, clip)


def class_label(model, clip):
    label = clip.words[0].argmax()[None]
    return model(clip.latents[None, :, 0], timestep=torch.tensor([clip.time]), class_labels=label).sample[0][:, None]


def ltx(model, clip):
    size = model.config.patch_size
    tokens = rearrange(clip.latents, "c t (h p) (w q) -> 1 (t h w) (c p q)", p=size, q=size)
    mask = torch.ones(1, len(clip.words))
    out = model(
        hidden_states=tokens,
        timestep=torch.tensor([clip.time]),
        encoder_hidden_states=clip.words[None],
        encoder_attention_mask=mask,
        num_frames=clip.grid.t,
        height=clip.grid.h,
        width=clip.grid.w,
        rope_interpolation_scale=(8 / 25, 32, 32),
    ).sample[0]
    return rearrange(out, "(t h w) (c p q) -> c t (h p) (w q)", t=clip.grid.t, h=clip.grid.h, p=size, q=size)


def cogvideox(model, clip):
    rotations = None
    model.patch_embed.max_text_seq_length = len(clip.words)  # its waves are made for captions of this length
    if model.config.use_rotary_positional_embeddings:
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        size = (clip.grid.h, clip.grid.w)
        rotations = get_3d_rotary_pos_embed(model.config.attention_head_dim, ((0, 0), size), size, clip.grid.t)
    frames_first = rearrange(clip.latents, "c t h w -> 1 t c h w")
    out = model(frames_first, clip.words[None], torch.tensor([clip.time]), image_rotary_emb=rotations).sample[0]
    return rearrange(out, "t c h w -> c t h w")


def hunyuan(model, clip):
    mask = torch.ones(1, len(clip.words), dtype=torch.int64)
    guidance = torch.tensor([1000.0 * clip.guidance]) if model.config.guidance_embeds else None
    return video(model, clip, encoder_attention_mask=mask, pooled_projections=clip.pooled[None], guidance=guidance)


def flux(model, clip):
    _, _, rows, columns = clip.latents.shape
    tokens = rearrange(clip.latents, "c 1 (h p) (w q) -> 1 (h w) (c p q)", p=2, q=2)
    places = torch.cartesian_prod(torch.zeros(1), *(torch.arange(size // 2).float() for size in (rows, columns)))
    out = model(
        hidden_states=tokens,
        encoder_hidden_states=clip.words[None],
        pooled_projections=clip.pooled[None],
        timestep=torch.tensor([clip.time / 1000]),
        guidance=torch.tensor([float(clip.guidance)]) if model.config.guidance_embeds else None,
        img_ids=places,
        txt_ids=torch.zeros(len(clip.words), 3),
    ).sample[0]
    return rearrange(out, "(h w) (c p q) -> c 1 (h p) (w q)", h=rows // 2, p=2, q=2)


ANY = ((1, 3, 1), (3, 1, 3), (2, 2, 2), (1, 1, 1))  # patches: an image, odd sizes, one token
IMAGES = ((1, 3, 1), (1, 2, 2), (1, 1, 1))
SQUARES = ((1, 2, 2), (1, 3, 3), (1, 1, 1))
THREE_FRAMES = ((1, 3, 1), (3, 1, 3), (3, 2, 2), (1, 1, 1))
CASES = {
    "wan_2_1_1_3b": (wan, ANY, SMALL | ROPE | {"text": {"fill": 9}}, {}),
    "wan_2_1_14b": (wan, ANY, SMALL | ROPE | {"heads": 3, "rope": {"axes": [8, 4, 4]}, "text": {"fill": 9}}, {}),
    "ltx_video": (ltx, ANY, SMALL | {"width": 56, "rope": {"width": 56, "heads": 2}}, {}),
    "latte_xl_2": (latte, THREE_FRAMES, SMALL | {"depth": 4, "position": {"rows": 3}}, {"video_length": 3}),
    "dit_xl_2": (class_label, SQUARES, SMALL | {"position": {"rows": 3}}, {}),
    "cogvideox_2b": (cogvideox, ANY, SMALL | {"level": {"level_width": 20}}, {}),
    "cogvideox_5b": (cogvideox, ANY, SMALL | {"width": 32, "rope": {"axes": [4, 6, 6]}, "level": {"level_width": 20}}, {}),
    "hunyuan_video": (hunyuan, ANY, JOINT | {"block": {"dual": 1}, "rope": {"axes": [8, 12, 12]}}, {}),
    "flux_dev": (flux, IMAGES, JOINT | {"block": {"dual": 2}, "rope": {"axes": [8, 12, 12]}}, {}),
}


STEPS = ("latte_xl_2", "dit_xl_2", "cogvideox_2b", "cogvideox_5b")  # whose levels are the numbers of steps, counted from 0


class Clip:
    """Latents, words and a vector of a clip, the level of all its frames, and the weights of a sum of what is predicted."""

    def __init__(self, number, shape, dit, before):
        draw = torch.Generator().manual_seed(number)
        self.grid, self.level = Grid(*shape), (0.25, 0.875, 0.5, 0.0)[number]
        self.time, self.guidance = max(0.0, 1000 * self.level - before), getattr(dit.embed_level, "scale", None)
        size = [extent * step for extent, step in zip(shape, dit.patch, strict=True)]
        self.latents = torch.randn(dit.latent_channels, *size, generator=draw).requires_grad_()
        self.weight = torch.randn(self.latents.shape, generator=draw)
        self.words = torch.randn((5, 1, 3, 7)[number], dit.text_width, generator=draw)
        if dit.text_width == CLASSES:
            self.words = torch.nn.functional.one_hot(torch.tensor([number]), CLASSES).float()
        self.words.requires_grad_()
        pooled = getattr(dit.embed_level, "pooled", None)
        self.pooled = torch.randn(POOLED if pooled is None else pooled[0].in_features, generator=draw).requires_grad_()
        self.inputs = [self.latents, self.words, self.pooled]

    def gradients(self):
        return [item.grad.clone() if item.grad is not None else torch.zeros_like(item) for item in self.inputs]


def patchify(latents, dit):
    t, h, w = dit.patch
    return rearrange(latents, "c (t pt) (h ph) (w pw) -> (t h w) (pt ph pw c)", pt=t, ph=h, pw=w)


def inputs_of(dit, clips):
    """All clips in one pack, with room to spare on every axis."""
    grids = [clip.grid for clip in clips]
    count = sum(grid.tokens for grid in grids)
    seconds = [torch.arange(grid.t) * torch.tensor(8 / 25) for grid in grids]
    tokens = pack([patchify(clip.latents, dit) for clip in clips], grids, seconds=seconds, budget=count + 5, max_clips=len(clips) + 1)
    conditions = torch.zeros(count + 5, dtype=torch.bool)
    levels = pack_levels(
        [torch.full((grid.t,), clip.level) for clip, grid in zip(clips, grids, strict=True)],
        grids,
        conditions,
        segments=len(clips) + 2,
    )
    words = torch.cat([*(clip.words for clip in clips), clips[0].words.new_ones(3, dit.text_width)])
    pooled = torch.stack([*(clip.pooled for clip in clips), *[torch.ones_like(clips[0].pooled)] * 2])
    return tokens, levels, TextTokens(words, Segments.of([*(len(clip.words) for clip in clips), 0, 3]), pooled)


def ours_of(dit, clips):
    """What our network predicts for each clip of that pack."""
    (tokens, levels, text), (t, h, w) = inputs_of(dit, clips), dit.patch
    grids = [clip.grid for clip in clips]
    return [
        rearrange(out, "(t h w) (pt ph pw c) -> c (t pt) (h ph) (w pw)", t=grid.t, h=grid.h, pt=t, ph=h, pw=w)
        for out, grid in zip(unpack(dit(tokens, levels, text), tokens.grids), grids, strict=True)
    ]


def made(kind, config):
    """A network of a class in diffusers with random weights."""
    model = getattr(diffusers, kind)(**{key: value for key, value in config.items() if key != "_class_name"}).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3) + (parameter.ndim == 1)
    state = model.state_dict()
    for key, value in state.items():  # copies of one embedding, as they are in the published checkpoints
        if ".norm1.emb." in key:
            value.copy_(state[key.replace(key.split(".")[1], "0", 1)])
    return model


def described(name, more=None):
    """The node of our network, small, and how many channels its patches have and how wide its text is."""
    config = OmegaConf.merge(node("dit", name), CASES[name][2], more or {})
    channels = 3 * torch.tensor(list(config.patch)).prod().item()
    return OmegaConf.to_container(config), {"patch_channels": channels, "text_width": CLASSES if name == "dit_xl_2" else TEXT}


def pair(name, more=None):
    """Our network, small, with the random weights of diffusers' class built from the configuration that our key map writes."""
    call, shapes, _, _ = CASES[name]
    torch.manual_seed(0)
    config, given = described(name, more)
    dit = build(config, **given)
    keys = dit.keys(dit)
    model = made(keys.kind, said(keys.options, leaves(dit), beside=CASES[name][3]))
    dit.load_state_dict(to_ours(keys, model.state_dict(), dit.state_dict()))
    return dit, model, keys, call, [Clip(number, shape, dit, int(name in STEPS)) for number, shape in enumerate(shapes)]


def apart(a, b):
    assert a.shape == b.shape
    return float((a - b).detach().abs().max()) / max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_diffusers(name):
    dit, model, keys, call, clips = pair(name)
    outputs = ours_of(dit, clips)
    sum((out * clip.weight).sum() for out, clip in zip(outputs, clips, strict=True)).backward()
    gradients = [clip.gradients() for clip in clips]
    for clip, out, found in zip(clips, outputs, gradients, strict=True):
        clip.latents.grad = clip.words.grad = clip.pooled.grad = None
        expected = call(model, clip)
        assert expected.detach().abs().max() > 0.1
        assert apart(out, expected) <= 1e-5
        (expected * clip.weight).sum().backward()
        for place, (ours, theirs) in enumerate(zip(found, clip.gradients(), strict=True)):
            if not (name == "dit_xl_2" and place == 1):  # a class is a number to diffusers, which has no gradient
                assert apart(ours, theirs) <= 1e-4, place
    compare_parameters(dit, model, keys)


def compare_parameters(dit, model, keys):
    """Every slice of every gradient of ours is the sum of the gradients of the published tensors that it is a slice of."""
    ours, theirs = dict(dit.named_parameters()), dict(model.named_parameters())
    expected = {}
    for name, key in keys.keys.items():
        gradient = torch.zeros_like(theirs[name]) if theirs[name].grad is None else theirs[name].grad
        whole, slices = _unshaped(gradient, key, keys.sizes), _slices(key)
        sizes = [_slice(ours[of], number, count).shape[key.axis] for of, number, count in slices]
        pieces = [whole] * len(slices) if key.added else whole.split(sizes, key.axis)
        for place, piece in zip(slices, pieces, strict=True):
            expected[place] = expected.get(place, 0) + piece
    for (name, number, count), gradient in expected.items():
        assert apart(_slice(ours[name].grad, number, count), gradient) <= 1e-4, name


@pytest.mark.parametrize("name", CASES)
def test_a_key_map_is_whole_and_goes_both_ways(name):
    dit, model, keys, _, _ = pair(name)
    assert uncovered(keys, dict(dit.named_parameters())) == []
    back = to_theirs(keys, dit.state_dict())
    assert back.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("name", ["wan_2_1_1_3b", "ltx_video"])
def test_a_level_for_every_frame_is_one_for_every_token_of_diffusers(name):
    """The two classes that take a level per token; ours has levels per frame, embedded once each."""
    dit, model, _, call, clips = pair(name)
    clip = clips[1]  # of three frames
    times = torch.tensor([0.0, 500.0, 875.0])
    levels = pack_levels([times / 1000], [clip.grid], torch.zeros(clip.grid.tokens, dtype=torch.bool), segments=2)
    seconds = [torch.arange(clip.grid.t) * torch.tensor(8 / 25)]
    tokens = pack([patchify(clip.latents, dit)], [clip.grid], seconds=seconds, budget=clip.grid.tokens, max_clips=1)
    found = dit(tokens, levels, TextTokens(clip.words, Segments.of([len(clip.words), 0])))
    clip.time = times.repeat_interleave(clip.grid.h * clip.grid.w).tolist()
    assert apart(found, patchify(call(model, clip), dit)) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_the_same_network_less_exactly(name):
    """Under autocast, no less exact than diffusers' class is, and with every weight cast, but not the rates of waves and rotations."""
    dit, model, _, call, clips = pair(name)
    exact = torch.cat([out.detach().flatten() for out in ours_of(dit, clips)])
    with torch.autocast("cpu", torch.bfloat16):
        rough = ours_of(dit, clips)
        with torch.no_grad():
            theirs = torch.cat([call(model, clip).flatten() for clip in clips])
    assert (torch.cat([out.detach().flatten() for out in rough]) - exact).norm() <= 1.1 * (theirs - exact).norm()
    sum(out.float().square().mean() for out in rough).backward()
    for out in (rough, ours_of(dit.to(torch.bfloat16), [cast(clip) for clip in clips])):
        assert (torch.cat([part.flatten() for part in out]) - exact).norm() <= 0.1 * exact.norm()


def cast(clip):
    for name in ("latents", "words", "pooled"):
        setattr(clip, name, getattr(clip, name).detach().to(torch.bfloat16))
    return clip


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_back(name, monkeypatch):
    """On the device "meta", whose numbers nobody can read (see tests/training/test_no_sync.py)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    dit, _, _, _, clips = pair(name)
    with torch.no_grad():
        tokens, levels, text = (part.to("meta") for part in inputs_of(dit, clips))
    out = dit.to("meta")(tokens, levels, text)
    assert out.is_meta and out.shape == tokens.patches.shape
    out.square().sum().backward()


@pytest.mark.long
def test_blocks_are_compiled_once_for_each_kind_and_recomputed_to_the_same_numbers():
    """Latte has two kinds of blocks over time: the first of them tells which frame a token is of."""
    done = subprocess.run([sys.executable, "-m", "tests.dit.published.compiled"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"wan_2_1_1_3b": 1, "latte_xl_2": 3, "hunyuan_video": 2}
