"""Two scores may be compared where every field agrees; the ones that do not are named."""

import json
from dataclasses import fields, replace

import pytest

from sora.metrics.protocol import Protocol, allowed, differences

ONE = Protocol(
    dataset={"fingerprint": "ab", "split": "heldout", "clips": 40},
    real={"n": 20, "frames": 16, "stride": 3},
    generated={"n": 20, "frames": 16, "stride": 1},
    prompts={"caption": "dense", "sha256": "cd"},
    pixels={"brought_to": {"size": [64, 64], "kernel": "legacy"}, "quantised": "rounded to 256 values"},
    extractor={"name": "i3d-93daef59", "sha256": "ef", "input": {"size": [224, 224], "kernel": "half_pixel"}},
    distances={"ddof": 1, "bootstrap": 100},
    sampling={"sampler": {"_target_": "x"}, "steps": 24, "seed": 0},
    measures=None,
    seed=0,
)


def changed(tree, place, value):
    first, _, rest = place.partition(".")
    return {**tree, first: changed(tree[first], rest, value) if rest else value}


LEAVES = [
    "dataset.fingerprint", "dataset.split", "real.stride", "generated.stride", "generated.n", "prompts.sha256", "pixels.brought_to.size",
    "pixels.brought_to.kernel", "pixels.quantised", "extractor.sha256", "extractor.input.kernel", "distances.ddof", "sampling.steps",
    "sampling.sampler", "seed", "measures",
]  # fmt: skip


@pytest.mark.parametrize("place", LEAVES)
def test_every_field_changes_the_hash_and_is_named(place):
    value = {"seed": 1, "measures": {"psnr": "pooled"}}.get(place, "another")
    other = Protocol.from_json(changed(ONE.to_json(), place, value))
    assert other.sha256 != ONE.sha256
    (found,) = differences(ONE.to_json(), other.to_json())
    assert found.place.startswith(place) or place.startswith(found.place)
    assert allowed(found.place, [place.partition(".")[0]]) and not allowed(found.place, ["nothing", place[:-1]])


def test_the_hash_hangs_on_values_not_on_their_order_or_kind_of_sequence():
    shuffled = replace(
        ONE, dataset=dict(reversed(ONE.dataset.items())), pixels={**ONE.pixels, "brought_to": {"kernel": "legacy", "size": (64, 64)}}
    )
    assert shuffled.sha256 == ONE.sha256 and differences(ONE.to_json(), shuffled.to_json()) == []
    assert Protocol.from_json(json.loads(json.dumps(ONE.to_json()))) == ONE


def test_a_protocol_of_another_version_names_its_fields():
    values = ONE.to_json()
    old = {**{key: value for key, value in values.items() if key != "pixels"}, "covariance": {"ddof": 1}}
    with pytest.raises(ValueError, match="it lacks pixels; it has covariance"):
        Protocol.from_json(old)
    assert {field.name for field in fields(Protocol)} == set(values)


def test_counts_of_shapes_are_one_field_and_long_values_are_cut():
    here, there = {"shapes": {"9x24x24 at 29.97 fps": 5}, "text": "a" * 500}, {"shapes": {"9x24x24 at 8 fps": 5}, "text": "b"}
    shapes, text = differences(here, there)
    assert shapes.place == "shapes" and "29.97" in str(shapes) and len(str(text)) < 120
    assert [found.place for found in differences({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}})] == ["a.b.c"]
