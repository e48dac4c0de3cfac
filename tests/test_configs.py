"""Every option of every group composes, says what it is, names what exists with all its settable keys, and builds."""

import inspect
import re
from copy import deepcopy
from functools import cache
from math import prod
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sora.config.build import build, resolve
from sora.config.command_line.verbs import verbs, worded
from sora.config.compose import compose, config_dir, groups, primaries
from sora.config.targets import TARGET

CONF = config_dir()
GROUPS = groups([CONF])
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
# What a command works out and gives to what it builds, as another option of conf/ or as a value; what a class asks for anew is added once.
OPTION_GIVEN = {"path": ("path", "straight"), "density": ("density", "logit_normal"), "reader": ("reader", "pyav")}
OPTION_GIVEN |= {"prompt": ("caption_prompt", "standard")}
GIVEN = {
    "patch_channels": 32, "text_width": 24, "latent_channels": 8, "seed": 0, "steps": 100, "fingerprint": "0" * 64, "shadow": {},
    "words": 50, "attributes": {"colour": 3},
}  # fmt: skip
LISTED = {"scorer"}  # groups of which a key names several options: curate scorers=[nsfw,lite0]
OF_USERS = {("scorer", "onnx"), ("attributes", "words")}
ON_DATA = {"data", "plan"}  # these open a dataset; the tests of their room build them
OBVIOUS = {"seed", "steps", "kind", "captions_per_file"}
DOWNLOADED = re.compile(r"source: (?!package:)\S")  # an encoder that stands on a hub is composed and its keys checked, not loaded


@cache
def loaded(group: str, option: str):
    return OmegaConf.load(GROUPS[group][option])


def node(group: str, option: str):
    """What the option's file holds, for the caller alone."""
    return deepcopy(loaded(group, option))


@cache
def with_targets() -> list[tuple[str, str]]:
    return [(group, option) for group, option in OPTIONS if TARGET in loaded(group, option)]


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_composes_with_each_option_of_each_of_its_groups(verb):
    """The first options of all groups together, then the second ones, and so on: composing takes a while. Experiments choose themselves."""
    base = compose(verb, [])
    tasks = [f"task={task}" for task in GROUPS.get("task", {})] if "task" in base.choices else []
    above = [path.stem for path in primaries(verb)[:-1]]  # what these have is composed with them
    had = {group for other in above for start in [[task] for task in tasks] or [[]] for group in compose(other, start).choices}
    tried = {(group, option) for group, option in OPTIONS if group in had}
    for start in [[task] for task in tasks] or [[]]:
        free = [group for group in compose(verb, start).choices if group not in ("task", "experiment")]
        untried = {group: [option for option in GROUPS.get(group, {}) if (group, option) not in tried] for group in free}
        tried |= {(group, option) for group, options in untried.items() for option in options}
        for number in range(max(map(len, untried.values()), default=0)):
            wanted = {group: options[number] for group, options in untried.items() if number < len(options)}
            chosen = compose(verb, [*start, *(f"{group}={option}" for group, option in wanted.items())])
            assert {group: chosen.choices[group] for group in wanted} == wanted
    for option in GROUPS["experiment"] if "experiment" in base.choices and not above else ():
        assert compose(verb, [f"experiment={option}"]).choices["experiment"] == option


@pytest.mark.slow
def test_every_group_belongs_to_some_verb():
    used = set()
    for verb in verbs():
        used |= set(compose(verb, []).choices)
        if "task" in compose(verb, []).choices:
            for task in GROUPS["task"]:
                used |= set(compose(verb, [f"task={task}"]).choices)
    assert set(GROUPS) - used == LISTED, f"groups that no verb has: {sorted(set(GROUPS) - used - LISTED)}"


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(verbs()))
def test_the_examples_of_every_verb_compose(verb):
    """What stands in --help must work: every KEY=VALUE of it names something that exists."""
    import shlex

    from sora.config.command_line.sweep import split

    for example in verbs()[verb].examples:
        words = [word for word in shlex.split(example.replace("…", "x").replace("...", ""))[2:] if not word.startswith("-")]
        words = worded(verbs()[verb], words)
        runs = split(verb, words, []) if " -m " in example else [words]
        assert len(runs) == prod(1 + word.count(",") for word in words if " -m " in example)
        for run in runs:
            named = {word.partition("=")[0] for word in run}
            # cluster=h100x512 says cluster and cluster.devices; captions=FILE says captions.file
            said = {key.removesuffix(".file") for key in compose(verb, run).said}
            assert named <= said <= named | {"cluster.devices"}, example


@pytest.mark.parametrize(("group", "option"), with_targets())
def test_an_option_names_what_exists_and_all_its_settable_keys(group, option):
    tree = node(group, option)
    parameters = inspect.signature(resolve(tree[TARGET])).parameters
    keys = {key for key in tree if key not in (TARGET, "defaults")}
    assert not keys - set(parameters), f"{sorted(keys - set(parameters))} is unknown to {tree[TARGET]}"
    defaulted = {name for name, item in parameters.items() if item.default is not item.empty and name not in {*GIVEN, *OPTION_GIVEN}}
    left = set() if inspect.isfunction(resolve(tree[TARGET])) or tree[TARGET].startswith("torch.") else defaulted - keys
    assert not left, (
        f"{GROUPS[group][option].relative_to(CONF)} leaves {sorted(left)} to Python's defaults; the YAML holds every settable key"
    )


@pytest.mark.parametrize(("group", "option"), with_targets())
def test_an_option_builds(group, option):
    import torch

    tree = node(group, option)
    if DOWNLOADED.search(GROUPS[group][option].read_text()) or group in ON_DATA or (group, option) in OF_USERS:
        resolve(tree[TARGET])  # what a hub, a dataset or a user's own file or words stand behind
        return
    made = resolve(tree[TARGET])
    if tree[TARGET].startswith("torch."):
        build(tree, params=[torch.nn.Parameter(torch.zeros(2, 2))])
        return
    parameters = inspect.signature(made).parameters
    missing = [name for name, item in parameters.items() if item.default is item.empty and name not in tree]
    given = GIVEN | {name: build(node(*place)) for name, place in OPTION_GIVEN.items() if name in missing}
    unknown = [name for name in missing if name not in given]
    if inspect.isfunction(made):
        build(tree)
        return
    assert not unknown, f"{tree[TARGET]} needs {unknown}: set it in the YAML, or, if a command gives it, name it in GIVEN"
    with torch.device("meta"):  # the largest need no memory
        build(tree, **{name: given[name] for name in missing})


def test_nothing_in_conf_calls_a_resolver_or_refers_across_files():
    wrong = [str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml") if "${" in path.read_text()]
    assert not wrong, f"{wrong} use interpolation; what follows from another part is worked out in Python"


def test_every_key_of_a_command_is_explained():
    """A comment behind each top-level key is what --help shows."""
    from sora.config.command_line.help import comments

    silent = []
    for verb in verbs():
        path: Path = CONF / f"{verb}.yaml"
        keys = [key for key, value in OmegaConf.load(path).items_ex(resolve=False) if key != "defaults" and not OmegaConf.is_dict(value)]
        told = comments([path], {})
        silent += [f"{verb}.yaml: {key}" for key in keys if key not in told and key not in OBVIOUS]
    assert not silent, silent


ABLATIONS = {
    "quickstart": ["optimizer=adamw", "schedule=cosine", "density=uniform", "objective=velocity", "ema=none", "dit=toy", "text=byte"],
    "quickstart_vae": ["optimizer=muon", "schedule=constant", "ema=none", "vae=toy"],
    "toy": ["optimizer=muon", "schedule=constant", "ema=none", "ema=power"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "word"), [(name, word) for name, words in ABLATIONS.items() for word in words])
def test_one_word_ablates_an_experiment(experiment, word):
    """The option comes with the values of its own file; the rest of the experiment stands, and the command line has the last word."""
    group, _, option = word.partition("=")
    alone = compose("train", [f"experiment={experiment}"]).config
    config = compose("train", [f"experiment={experiment}", word]).config
    assert config[group] == node(group, option)
    assert not {key for key in alone if key != group and alone[key] != config[key]}


@pytest.mark.slow
def test_the_command_line_still_has_the_last_word_in_an_ablation():
    config = compose("train", ["experiment=quickstart", "optimizer=adamw", "optimizer.lr=0.5", "steps=3"]).config
    assert config.optimizer == OmegaConf.merge(node("optimizer", "adamw"), {"lr": 0.5}) and config.steps == 3
    with pytest.raises(ValueError, match=r"there is no key 'optimizer\.other_lr'"):
        compose("train", ["experiment=quickstart", "optimizer=adamw", "optimizer.other_lr=0.5"])


@pytest.mark.parametrize("verb", ["encode", "evaluate"])
def test_an_unknown_key_is_answered_with_every_key_once(verb):
    with pytest.raises(ValueError, match="there is no key 'nokey'") as error:
        compose(verb, ["nokey=1"])
    told = re.search(r" has: (.*)\. See", str(error.value))
    assert told is not None
    names = told[1].split(", ")
    assert "launcher" in names and len(set(names)) == len(names)


def test_no_experiment_may_be_said_and_other_groups_name_their_options():
    plain, said = compose("train", ["seed=3"]), compose("train", ["experiment=null", "seed=3"])
    assert plain.config == said.config
    assert compose("sample", ["stretch=null", "checkpoint=x"]).config == compose("sample", ["checkpoint=x"]).config
    with pytest.raises(ValueError, match="logger=null: there has to be one; its options: csv, none"):
        compose("train", ["logger=null"])


@pytest.mark.slow
def test_an_option_that_is_named_brings_all_values_of_its_own_file():
    for word in ("plan=bucketed", "plan=padded", "plan=packed", "optimizer=adamw", "optimizer=muon", "density=logit_normal"):
        group, _, option = word.partition("=")
        assert compose("train", ["experiment=quickstart", word]).config[group] == node(group, option)
    assert compose("train", ["experiment=quickstart", "plan=padded", "plan.budget=96"]).config.plan.budget == 96
    found = compose("train", ["experiment=quickstart", "plan.filling._target_=sora.data.Bucketed"]).config.plan  # another filling alone
    assert found == OmegaConf.merge(
        node("plan", "packed"), {"budget": 2048, "max_clips": 48, "filling": {"_target_": "sora.data.Bucketed"}}
    )
