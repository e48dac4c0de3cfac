"""Weights, counters and settings of strangers: finite, of the shapes that are declared, and consistent, or refused by name."""

import hashlib
import json
import math
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.attacks.harness import assert_refused, in_turn

VERBS = {
    "sample": ("checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", "output={out}"),
    "export": ("checkpoint={run}", "output={out}"),
    "train": ("resume={run}", "steps=4", "resume_allow=[steps]", "data.folders=[{data}]"),
}


@pytest.fixture
def attack(sora, material, made):
    def attacked(verb, spoil):
        run = material.copy("live")
        spoil(run)
        return sora(verb, *(word.format(run=run, data=made / "data", out=run.parent / "out") for word in VERBS[verb]))

    return attacked


def resealed(step):
    """A manifest that fits what the files hold now: a stranger writes his own."""
    whole = json.loads((step / "manifest.json").read_text())
    for name in whole["files"]:
        content = (step / name).read_bytes()
        whole["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    body = {key: value for key, value in whole.items() if key != "sha256"}
    text = json.dumps(body, indent=1) + "\n"
    body["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (step / "manifest.json").write_text(json.dumps(body, indent=1) + "\n")


def steps(run):
    return sorted((run / "checkpoints").iterdir())


def tensors(kind, change):
    """Other numbers in a file of every checkpoint, with a manifest that fits."""

    def spoil(run):
        for step in steps(run):
            path = step / f"{kind}.safetensors"
            found = {name: value.clone() for name, value in load_file(path).items()}
            change(found)
            save_file(found, path)
            resealed(step)

    return spoil


def first(found):
    return next(name for name, value in sorted(found.items()) if value.is_floating_point() and value.numel() > 3)


def put(number):
    def change(found):
        found[first(found)].view(-1)[1] = number

    return change


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("verb", "kind"), [("sample", "ema"), ("export", "ema"), ("train", "model"), ("train", "ema"), ("train", "optimizer")]
)
def test_weights_that_are_not_finite_are_refused(attack, verb, kind, number):
    assert_refused(attack(verb, tensors(kind, put(number))), "not finite")


def reshaped(found):
    name = first(found)
    found[name] = torch.zeros(3, 5)


def retyped(found):
    name = first(found)
    found[name] = found[name].to(torch.int8)


def renamed(found):
    found["other"] = found.pop(first(found))


@pytest.mark.parametrize("change", [reshaped, renamed, dict.clear])
@pytest.mark.parametrize("verb", ["sample", "train"])
def test_tensors_are_those_of_the_network(attack, verb, change):
    def both(run):
        for kind in ("model", "ema"):
            tensors(kind, change)(run)

    assert_refused(attack(verb, both))


def header(said):
    """A file with another header, at every step."""

    def spoil(run):
        for step in steps(run):
            path = step / "model.safetensors"
            whole = path.read_bytes()
            (length,) = struct.unpack("<Q", whole[:8])
            new = said(json.loads(whole[8 : 8 + length]))
            text = new if isinstance(new, bytes) else json.dumps(new).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
            resealed(step)

    return spoil


def each(**changes):
    return lambda said: {name: {**one, **changes} if name != "__metadata__" else one for name, one in said.items()}


HEADERS = {
    "dtype F4": each(dtype="F4"),
    "dtype F8_E4M3": each(dtype="F8_E4M3"),
    "dtype 3": each(dtype=3),
    "no dtype": lambda said: {name: {"shape": one["shape"]} for name, one in said.items()},
    "shapes below zero": each(shape=[-1]),
    "huge shapes": each(shape=[1 << 40, 1 << 40]),
    "texts for shapes": each(shape="x"),
    "offsets of one": each(data_offsets=[0]),
    "offsets beyond": each(data_offsets=[0, 1 << 50]),
    "offsets backwards": each(data_offsets=[8, 0]),
    "a list": lambda said: [],
    "nothing": lambda said: {},
    "no JSON": lambda said: b"{",
    "deep": lambda said: b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "many names": lambda said: {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(300_000)},
    "metadata of numbers": lambda said: {**said, "__metadata__": {"a": 1}},
}


@pytest.mark.parametrize(("what", "verb"), in_turn([*HEADERS], ["sample", "sample", "sample", "train"]))
def test_headers_of_tensors_are_of_their_form(attack, verb, what):
    assert_refused(attack(verb, header(HEADERS[what])), "safetensors")


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_is_as_long_as_it_says(attack, length):
    def spoil(run):
        for step in steps(run):
            path = step / "model.safetensors"
            path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
            resealed(step)

    assert_refused(attack("sample", spoil), "model.safetensors")


def facts(change):
    """Another state.json at the newest step alone, whose manifest fits; older ones go."""

    def spoil(run):
        *older, step = steps(run)
        for path in older:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        whole = json.loads((step / "state.json").read_text())
        change(whole)
        (step / "state.json").write_text(json.dumps(whole))
        resealed(step)
        if type(whole.get("step")) is int and whole["step"] >= 0:
            step.rename(step.with_name(f"step-{whole['step']:08d}"))

    return spoil


def far(whole):
    for place in (whole, whole["facts"]["counters"]):
        place["step"] = 10**18


def beyond(whole):
    for place in (whole, whole["facts"]["counters"]):
        place["step"] = 5000


def at(*keys, value):
    def change(whole):
        *above, last = keys
        place = whole
        for key in above:
            place = place[key]
        place[last] = value

    return change


STATES = {
    "a step of 10^18": far,
    "a step beyond the run": beyond,
    "samples below zero": at("samples", value=-3),
    "other samples in the counters": at("facts", "counters", "samples", value=10**9),
    "tokens that are a text": at("tokens", value="many"),
    "updates below zero": at("facts", "counters", "updates", value=-1),
    "updates that are a fraction": at("facts", "counters", "updates", value=0.5),
    "counters that are a list": at("facts", "counters", value=[]),
    "unknown counters": at("facts", "counters", "mine", value=1),
    "losses that are texts": at("facts", "losses", value=["x"]),
    "losses that are a number": at("facts", "losses", value=3),
    "a window of nothing": at("facts", "window", value={}),
    "a window's parts": at("facts", "window", "parts", value={"x": ["a", "b"]}),
    "seconds below zero": at("facts", "seconds", value=-1),
    "suspects that are numbers": at("facts", "suspects", value=[1]),
    "suspects that are texts": at("facts", "suspects", value=[["x", ["y"]]]),
    "facts that are a list": at("facts", value=[]),
}


@pytest.mark.parametrize("what", STATES)
def test_counters_are_possible_and_fit_one_another(attack, what):
    assert_refused(attack("train", facts(STATES[what])))


# ---- the VAE that a run takes along


def card(change):
    def spoil(run):
        path = run / "vae/vae.json"
        whole = json.loads(path.read_text())
        change(whole)
        rest = {key: value for key, value in whole.items() if key != "card_sha256"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        whole["card_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(json.dumps(whole))
        unbound(run)

    return spoil


def unbound(run):
    """A run that does not say which VAE it depends on."""
    whole = json.loads((run / "run.json").read_text())
    whole["depends"].pop("vae", None)
    (run / "run.json").write_text(json.dumps(whole))


SETTINGS = {
    "latent_channels": (0, -1, 10**9, "x", 1.5),
    "widths": ([10**6, 10**6], [], "x", [0, 0], [8], 3),
    "blocks": ([10**7, 1], [-1, 1], ["x", 1]),
    "decoder_blocks": ([10**7, 1], [1]),
    "stem": ([1024, 1024, 1024], [64, 64, 64], [3, 3, 3], [0, 1, 1], [1, 1], "abc"),
    "strides": ([[1 << 20, 1, 1]], [[2, 1]], [], "x"),
    "kernels": ([[1001, 1001, 1001], [3, 3, 3]], [[2, 2, 2], [3, 3, 3]], []),
    "noise": (0, -1, "x", None),
    "other": (1,),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SETTINGS.items() for value in values])
def test_settings_of_a_vae_are_bounded(attack, key, value):
    assert_refused(attack("sample", card(lambda whole: whole["settings"].update({key: value}))), "vae")


@pytest.mark.parametrize("key", ["settings", "stride", "format", "weights_sha256", "whitening"])
def test_the_card_of_a_vae_has_what_is_needed(attack, key):
    assert_refused(attack("sample", card(lambda whole: whole.pop(key))), "vae.json")


@pytest.mark.parametrize("stride", [[1, 1, 1], [2, 4], "x", [0, 0, 0], [10**9, 1, 1]])
def test_the_stride_of_a_vae_is_that_of_its_settings(attack, stride):
    assert_refused(attack("sample", card(lambda whole: whole.update(stride=stride))), "vae.json")


def vae_weights(change):
    def spoil(run):
        path = run / "vae/vae.safetensors"
        found = {name: value.clone() for name, value in load_file(path).items()}
        change(found)
        save_file(found, path)
        card(lambda whole: whole.update(weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))(run)

    return spoil


VAES = {
    "a scale below zero": lambda found: found["scale"].neg_(),
    "no scale": lambda found: found["scale"].zero_(),
    "a scale that is no number": lambda found: found["scale"].fill_(math.nan),
    "an endless shift": lambda found: found["shift"].fill_(math.inf),
    "weights that are not finite": put(math.nan),
    "other shapes": reshaped,
    "a tensor less": lambda found: found.pop("scale"),
    "none": dict.clear,
}


@pytest.mark.parametrize("what", VAES)
def test_weights_of_a_vae_are_finite_and_whiten(attack, what):
    assert_refused(attack("sample", vae_weights(VAES[what])), "vae.safetensors")
