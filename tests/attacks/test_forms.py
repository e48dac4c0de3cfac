"""Mutants of sound files against their declared forms: ten thousand each, and nothing but a ValueError, in no time."""

import json
import marshal
import random
import time
from pathlib import Path

import pytest

from sora.gate import forms
from sora.gate.forms import fitting
from sora.gate.texts import CARD, CONFIG, LIST, json_of, read_json, yaml_of

MUTANTS = 10_000
VALUES = (None, True, False, -1, 0, 1, 1.5, 1e308, 10**30, "", "x", "../x", "/x", "\0", "é" * 50, [], [1], [[]], {}, {"a": 1}, {"": None})


def declared():
    """Each form by its name, with where a sound value lies in the material, and which part of it."""
    from sora.config.command_line import sweep  # noqa: F401  (its form stands where it is read)
    from sora.data.index import index, keyed_sets, latents
    from sora.data.loading import quarantine
    from sora.data.shards import stores
    from sora.ingest import index_progress as parts
    from sora.launch import stages
    from sora.metrics import scored
    from sora.runs import jsonl as metrics
    from sora.runs import manifest, run
    from sora.text import cache
    from sora.training.logging import goodput as phases
    from sora.vae import artefact

    return {
        "run.json": (run.FORM, "live/run.json"),
        "config.yaml": (run.CONFIG_FORM, "live/config.yaml"),
        "state.json": (manifest.STATE_FORM, "live/checkpoints/step-00000002/state.json"),
        "manifest.json": (manifest.FORM, "live/checkpoints/step-00000002/manifest.json"),
        "vae.json": (artefact.FORM, "vae/vae.json"),
        "dataset.json": (index.FORM, "data/dataset.json"),
        "remote.json": (stores.FORM, "indexed/remote.json"),
        "latents-.json": (latents.FORM, "data/latents-*.json"),
        "text-.json": (cache.FORM, "data/text-*.json"),
        "scores.json": (scored.FORM, "scores/scores.json"),
        **{f"{kind.prefix}-.json": (kind.form, added(kind)) for kind in (keyed_sets.CAPTION_SETS, keyed_sets.SCORE_SETS)},
        "selection-.json": (
            keyed_sets.SELECTIONS.form,
            {**added(keyed_sets.SELECTIONS), "clips": "e", "captions": {"whole": "f", "splits": {"train": "g"}}},
        ),
        "indexing": (parts.FORM, {"shard": "a", "stamp": "", "size": 1, "clips": 1, "sha256": "0" * 64, "notes": {"x": 1}, "refused": []}),
        "quarantine.jsonl": (quarantine.LINE, {"key": "a", "reason": "b", "sample_id": 3, "from": 4}),
        "metrics.jsonl": (metrics.STEPPED, {"step": 3, "weights": "ema"}),
        "goodput.jsonl": (phases.LINE, "live/goodput.jsonl"),
        "stages": (stages.MARKER, {"stage": "a", "title": "b", "command": "c", "depends": "d", "commit": "e", "seconds": 1.0}),
    }


def added(kind):
    """The manifest of a set of captions, of scores, or a selection."""
    return {"name": "a", "dataset": "b", "files": [{"shard": 0, "file": "c", "sha256": "0" * 64, kind.column: "d"}]}


def sound(said, made: Path):
    if isinstance(said, dict):
        return said
    path = next(made.glob(said))
    if path.suffix == ".yaml":
        return yaml_of(path.read_bytes())
    return json.loads(path.read_text().splitlines()[0]) if path.suffix == ".jsonl" else read_json(path, limit=LIST)


def places(value, place=()):
    found = [place]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs)[:40]:
        found += places(inner, (*place, key))
    return found


def mutant(value, spots, draw):
    """A copy with one to three places that hold another value, are gone, or hold one thing more."""
    whole = marshal.loads(marshal.dumps(value))  # the fastest copy
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place = draw.choice(spots)
        if not place:
            continue
        holder = whole
        try:
            for key in place[:-1]:
                holder = holder[key]
            kind = draw.random()
            if kind < 0.6:
                holder[place[-1]] = draw.choice(VALUES)
            elif kind < 0.8:
                del holder[place[-1]]
            elif isinstance(holder, dict):
                holder[draw.choice(("other", "", "../x", "a" * 300))] = draw.choice(VALUES)
            else:
                holder.append(draw.choice(VALUES))
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return whole


NAMES = list(declared())


@pytest.mark.parametrize("name", NAMES)
def test_a_mutant_has_the_form_or_is_a_value_error(made, name):
    form, said = declared()[name]
    value = sound(said, made)
    assert forms.misfit(value, form) is None, forms.misfit(value, form)
    draw, spots, refused, began = random.Random(name), places(value), 0, time.process_time()
    for _ in range(MUTANTS):
        try:
            fitting(mutant(value, spots, draw), form, "a.json")
        except ValueError as error:
            refused += 1
            assert str(error).startswith("a.json is damaged: ") and len(str(error)) < 600, error
    assert refused > MUTANTS // 20, f"only {refused} of {MUTANTS} were refused: the form says nothing"
    assert time.process_time() - began < 60


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith((".json", ".yaml"))])
def test_bytes_that_are_flipped_are_read_or_are_a_value_error(made, name):
    """Of the text itself: cut, doubled, with other letters."""
    form, said = declared()[name]
    text = (json.dumps(said) if isinstance(said, dict) else next(made.glob(said)).read_text())[:20_000].encode()
    draw, count = random.Random(name), MUTANTS if name.endswith(".json") else MUTANTS // 20
    for _ in range(count):
        changed = bytearray(text[:2000] if draw.random() < 0.7 else text)
        for _ in range(draw.randrange(1, 6)):
            spot = draw.randrange(len(changed))
            kind = draw.random()
            if kind < 0.5:
                changed[spot] = draw.randrange(256)
            elif kind < 0.75:
                del changed[spot : spot + draw.randrange(1, 50)]
            else:
                changed[spot:spot] = changed[draw.randrange(len(changed)) :][:50] or b"["
        try:
            value = yaml_of(bytes(changed), limit=CONFIG) if name.endswith(".yaml") else json_of(bytes(changed), limit=CARD)
            fitting(value, form, name)
        except (ValueError, RecursionError) as error:
            assert isinstance(error, ValueError), error
