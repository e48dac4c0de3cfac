"""Values of the wrong kind, and sizes beyond measure, for every key of every verb: one line, and exit code 2."""

import pytest

from sora.config.check import flatten
from sora.config.compose import compose
from tests.attacks.harness import assert_bounded, assert_refused
from tests.attacks.material import TRAIN

VERBS = {
    "train": (*TRAIN, "data.folders=[{data}]", "vae={vae}", "steps=1", "output={out}"),
    "plan": (*TRAIN, "data.folders=[{data}]", "vae={vae}", "steps=1"),
    "sample": ("checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", "output={out}"),
    "evaluate": ("checkpoint={run}", "data={data}", "n=2", "output={out}"),
    "encode": ("data={data}", "vae={vae}", "text=byte"),
    "export": ("checkpoint={run}", "output={out}"),
    "prepare": ("source=folder", "input={videos}", "output={out}"),
    "data": ("check", "{data}", "output={out}.json"),
}
WORDS = ("x", "-1", "0", "1e300", "[]", "[x]", "{a: 1}", "null", "true", "", "99999999999999999999", "1.5", "nan")
AT_ONCE = 12  # words of one trial: a verb stops at the first that it refuses


def keys(verb):
    """The plain keys of a verb, each with its value."""
    try:
        config = compose(verb, [word for word in VERBS[verb] if "{" not in word and "=" in word]).config
    except ValueError:
        return []
    left = ("output", "input", "checkpoint", "data", "vae", "resume", "prompt", "launcher", "check", "show", "index", "mirror")
    return [key for key in flatten(config) if key.split(".")[0] not in left and not key.endswith("_target_")]


def cases():
    """Every key with two words that are not of its kind, so that all words come to each verb's keys in turn."""
    number = 0
    for verb in VERBS:
        for key in keys(verb):
            for step in (0, 5):
                yield pytest.param(verb, key, WORDS[(number + step) % len(WORDS)], id=f"{verb}-{key}-{WORDS[(number + step) % len(WORDS)]}")
            number += 1


SPREAD = list(cases())[::13]


@pytest.mark.parametrize(("verb", "key", "word"), SPREAD)
def test_a_value_of_another_kind_is_one_line_or_is_taken(sora, material, made, tmp_path, verb, key, word):
    places = {"data": made / "data", "vae": made / "vae", "run": made / "live", "videos": made / "videos", "out": tmp_path / "out"}
    if verb == "encode":
        places["data"] = material.copy("data")
    words = [one.format(**places) for one in VERBS[verb] if not one.startswith(f"{key}=")]
    ended = sora(verb, *words, f"{key}={word}")
    assert "Traceback" not in ended.err, ended.told
    assert ended.code in (0, 2), ended.told
    assert_bounded(ended)


SIZES = {
    "train": (
        "dit.depth=10000000",
        "dit.width=10000000",
        "dit.width=131072 dit.depth=1000",
        "dit.heads=100000000",
        "plan.budget=1000000000000",
        "workers=1000000",
        "level_bins=1000000000",
        "data.cache_mb=1e300",
        "checkpoint.keep=1000000000000000000",
    ),
    "sample": (
        "size=100000x100000",
        "size=16384x16384",
        "seconds=1000000",
        "seconds=1e300",
        "fps=1e300",
        "samples=1000000000",
        "steps=1000000000",
        "area=1e300",
        "area=1000000000",
        "enlarge=1000000",
        "budget=-1",
        "seed=1e300",
        "clip_gb=0",
    ),
    "evaluate": ("n=1000000000000", "size=100000", "bootstrap=1000000000", "generated.frames=1000000000", "keep=-1"),
    "plan": ("dit.depth=10000000", "dit.width=10000000", "plan.budget=1000000000000"),
}


@pytest.mark.parametrize(("verb", "words"), [(verb, words) for verb, some in SIZES.items() for words in some])
def test_sizes_are_bounded_where_they_are_asked_for(sora, made, tmp_path, verb, words):
    places = {"data": made / "data", "vae": made / "vae", "run": made / "live", "videos": made / "videos", "out": tmp_path / "out"}
    asked = words.split()
    names = [word.partition("=")[0] for word in asked]
    base = [one.format(**places) for one in VERBS[verb] if one.partition("=")[0] not in names]
    ended = sora(verb, *base, *asked)
    assert_bounded(ended)
    if ended.code != 0:
        assert_refused(ended)


@pytest.mark.parametrize("words", ["dit.depth=10000000", "dit.width=10000000"])
def test_a_network_beyond_measure_is_refused_by_its_key(sora, made, tmp_path, words):
    base = [one.format(data=made / "data", vae=made / "vae", out=tmp_path / "out") for one in VERBS["train"]]
    assert_refused(sora("train", *base, words), words.partition("=")[0], "10,000,000")


def test_a_sample_beyond_measure_is_refused_with_both_numbers(sora, made, tmp_path):
    base = (f"checkpoint={made / 'live'}", "prompt=x", "steps=1", f"output={tmp_path / 'out'}")
    assert_refused(sora("sample", *base, "size=100000x100000"), "100000x100000", "16384")
    assert_refused(sora("sample", *base, "size=8192x8192", "seconds=60", "fps=8"), "GiB", "clip_gb=2")


@pytest.mark.parametrize("task", ["vae", "diffusion"])
def test_a_task_that_is_not_the_runs_is_refused_at_a_resume(sora, material, made, task):
    run = material.copy("live")
    ended = sora("train", f"task={task}", f"resume={run}", f"data.folders=[{made / 'data'}]")
    if task == "diffusion":
        assert ended.code == 0, ended.told
    else:
        assert_refused(ended, "task=vae", "diffusion")
