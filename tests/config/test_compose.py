"""What a command line and files may set: everything that exists, nothing else, and each mistake names what fits."""

import pytest
from omegaconf import OmegaConf

from sora.config.compose import compose, config_dir, require_all

pytestmark = pytest.mark.slow


def refused(*arguments, folders=(), verb="train"):
    with pytest.raises(ValueError) as caught:
        compose(verb, arguments, folders)
    return str(caught.value)


def test_what_exists_is_set(toy):
    config = compose("train", ["steps=3", "net=thin", "net.width=5", "resume=/a/b", "free.anything=1"]).config
    assert (config.steps, config.net.width, config.net.name, config.resume, config.free.anything) == (3, 5, "thin", "/a/b", 1)


def test_the_experiment_chooses_and_the_command_line_has_the_last_word(toy):
    assert compose("train", ["experiment=good"]).config.net == {
        "_target_": "sora.toyroom.Net", "width": 3, "rate": 0.1, "name": "thin", "sizes": [], "part": None,
    }  # fmt: skip
    assert compose("train", ["experiment=good", "net=wide", "steps=9"]).config.net.name is None
    assert compose("train", ["experiment=good", "net.width=7"]).config.net.width == 7


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_misspelt_key_names_the_right_one(toy, plus):
    message = refused(f"{plus}net.widht=3")
    assert "'net.widht'" in message and "did you mean 'net.width'" in message and "net.rate" in message
    message = refused(f"{plus}stesp=3")
    assert "did you mean 'steps'" in message and "budget" in message


def test_a_plus_before_a_right_key_sets_it(toy):
    assert compose("train", ["+steps=3"]).config.steps == 3


def test_a_misspelt_option_or_group_names_the_right_ones(toy):
    assert "did you mean 'wide'" in refused("net=wdie") and "thin, wide" in refused("net=wdie")
    assert "did you mean 'net'" in refused("nett=wide")


def test_an_option_of_a_group_that_the_task_does_not_have(toy):
    message = refused("task=small", "sampler=heun")
    assert message.startswith("sampler= does not fit here") and "net" in message


def test_a_key_may_share_its_name_with_a_group_of_another_verb(toy):
    assert compose("sample", ["net=/a/folder, odd", "sampler=x"]).config == {"net": "/a/folder, odd", "sampler": "x"}
    assert compose("sample", ["net=a,b"]).config.net == "a,b"


def test_typos_in_an_experiment_name_its_file(toy):
    message = refused("experiment=typo")
    assert "experiment/typo.yaml" in message and "'net.widht', which net=wide does not have (did you mean 'net.width'?)" in message


def test_typos_in_a_group_file_are_found_before_anything_is_imported(toy):
    (toy / "mine/net").mkdir(parents=True)
    (toy / "mine/net/odd.yaml").write_text("_target_: sora.toyroom.Net\nwitdh: 8\n")
    message = refused("net=odd", folders=[toy / "mine"])
    assert "has no key 'witdh' (did you mean 'width'?)" in message and "rate" in message


def test_options_and_experiments_come_from_folders_of_ones_own(toy):
    (toy / "my own/net").mkdir(parents=True)
    (toy / "my own/net/mine.yaml").write_text("_target_: sora.toyroom.Net\nwidth: 77\n")
    assert compose("train", ["net=mine"], [toy / "my own"]).config.net.width == 77
    assert "is not a folder" in refused(folders=[toy / "nowhere"])


@pytest.mark.parametrize(
    ("argument", "kind"),
    [("steps=abc", "number"), ("steps=true", "number"), ("flag=3", "true or false"), ("net.width=abc", "number"),
     ("net.part.depth=a", "number"), ("net.part=3", "takes an object"), ("net.width=1.5", "whole number"),
     ("steps=[1]", "number"), ("net.width=[8]", "number")],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(toy, argument, kind):
    assert kind in refused(argument)


def test_a_value_of_the_wrong_kind_in_an_experiment_names_its_file(toy):
    message = refused("experiment=kind")
    assert "wrong kind" in message and "experiment/kind.yaml" in message


def test_a_key_cannot_be_taken_away(toy):
    assert "set it to null" in refused("~steps")


@pytest.mark.parametrize(
    "value", ["a red ball, rolling left", "it's a ball: it rolls (left)", "50 % {of} a = b", "ends in a backslash \\", "it's"]
)
def test_a_sentence_needs_no_second_quotes(toy, value):
    assert compose("train", [f"resume={value}"]).config.resume == value


def test_a_path_with_odd_characters_is_taken_as_it_is(toy):
    assert compose("train", ["resume=/tmp/a (1)/b=c.mp4"]).config.resume == "/tmp/a (1)/b=c.mp4"


def test_several_values_without_m_say_so(toy):
    assert "--multirun" in refused("steps=1,2") and "-m" in refused("net=wide,thin")


@pytest.mark.parametrize("name", ["hydra", "resolver", "smuggle", "swap"])
def test_hostile_experiments_are_refused_by_name(toy, name, monkeypatch):
    monkeypatch.chdir(toy)
    message = refused(f"experiment={name}")
    assert {
        "hydra": "hydra.callbacks",
        "resolver": "oc.env",
        "smuggle": "'net._target_', a value of net=wide",
        "swap": "'net._target_', a value",
    }[name] in message
    assert not (toy / "pwned").exists()


@pytest.mark.parametrize("argument", ["hydra.run.dir=/tmp/x", "+hydra.callbacks.x._target_=os.system", "hydra/launcher=basic"])
def test_hydras_own_settings_are_not_settable(toy, argument):
    assert "Hydra's own settings" in refused(argument)


@pytest.mark.parametrize(
    "argument", ["resume=${oc.env:HOME}", "resume='${now:%Y}'", "net.name=${oc.decode:x}", "resume=${seed}", "net.sizes=[${seed}]"]
)
def test_references_on_the_command_line_are_refused(toy, argument):
    assert "${…} is not looked up" in refused(argument)


def test_another_target_leaves_the_keys_behind_that_only_the_old_one_takes(toy):
    part = OmegaConf.to_container(compose("train", ["net=wide", "net.part={_target_: sora.toyroom.Net, width: 3}"]).config.net.part)
    assert part == {"_target_": "sora.toyroom.Net", "width": 3}
    swapped = OmegaConf.to_container(compose("train", ["net=wide", "net.part._target_=sora.toyroom.heun"]).config.net.part)
    assert swapped == {"_target_": "sora.toyroom.heun"}
    for said in (["net.part={_target_: sora.toyroom.heun, depth: 2}"], ["net.part._target_=sora.toyroom.heun", "net.part.depth=2"]):
        assert "sora.toyroom.heun has no key 'depth'" in refused("net=wide", *said)  # what is said with the new one is not forgotten


def test_a_target_on_the_command_line_is_checked_too(toy):
    assert "os.system is refused" in refused("net._target_=os.system")


def test_what_must_be_given_is_asked_for(toy):
    with pytest.raises(ValueError, match="data=…"):
        require_all(compose("encode", []), "encode")
    require_all(compose("encode", ["data=x"]), "encode")


def test_a_damaged_yaml_file_is_named(toy):
    (toy / "conf/net/broken.yaml").write_text("a: [1\nb: }")
    assert "broken.yaml" in refused("net=broken")


def test_composing_writes_nothing_and_leaves_hydra_as_it_was(toy, monkeypatch):
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(toy)
    before = sorted(toy.rglob("*"))
    composed = compose("train", ["experiment=good"])
    assert sorted(toy.rglob("*")) == before and not GlobalHydra.instance().is_initialized()
    assert "hydra" not in composed.config and OmegaConf.is_struct(composed.config)


def test_what_is_kept_between_compositions_is_neither_shared_nor_stale(tmp_path):
    """Hydra's answer is kept for the process: a copy for each asker, and made anew when a file has changed."""
    option = tmp_path / "dit" / "mine.yaml"
    option.parent.mkdir()
    option.write_text((config_dir() / "dit" / "toy.yaml").read_text())
    words = ["dit=mine", "seed=7"]
    first = compose("train", words, [tmp_path]).config
    depth = first.dit.depth
    first.dit.depth = 99
    assert compose("train", words, [tmp_path]).config.dit.depth == depth
    text = option.read_text()
    assert f"depth: {depth}" in text
    option.write_text(text.replace(f"depth: {depth}", f"depth: {depth + 100}"))
    assert compose("train", words, [tmp_path]).config.dit.depth == depth + 100


def test_an_option_may_be_made_of_others(tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "mine.yaml").write_text("defaults: [packed, _self_]\nwindow: 3\n")
    composed = compose("train", ["plan=mine", "plan.budget=768"], [tmp_path])
    packed = OmegaConf.to_container(OmegaConf.load(config_dir() / "plan/packed.yaml"))
    assert OmegaConf.to_container(composed.config.plan) == packed | {"window": 3, "budget": 768}
    with pytest.raises(ValueError, match=r"plan\.window=few is of the wrong kind: it takes a whole number"):  # as the other's file says
        compose("train", ["plan=mine", "plan.window=few"], [tmp_path])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plan: {budget: 9}", "sets 'plan.budget', a value of plan=packed; an experiment chooses options"),
        ("plan: {bugdet: 9}", r"sets 'plan.bugdet', which plan=packed does not have \(did you mean 'plan.budget'"),
        ("defaults: [{override /ema: none}]\nema: {rate: 3}", "sets 'ema.rate', a value of ema=none"),
        ("stesp: 9", r"sets 'stesp', and there is no such key \(did you mean 'steps'\?\)"),
        ("checkpoint: {evry: 9}", r"sets 'checkpoint.evry', and there is no such key \(did you mean 'checkpoint.every'"),
        ("defaults: [{override /task: vae}]\nlevel_bins: 3", "sets 'level_bins', and there is no such key"),
    ],
)
def test_an_experiment_that_sets_more_than_keys_of_its_verb_is_told_where_they_belong(tmp_path, text, told):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ValueError, match=f"experiment/mine.yaml {told}"):
        compose("train", ["experiment=mine"], [tmp_path])


def test_an_experiment_sets_the_keys_of_its_verb_and_task_and_may_stand_on_another(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/base.yaml").write_text(
        "# @package _global_\nsteps: 7\nlevel_bins: 3\ndata: {folders: [a]}\nvae: v\ncheckpoint: {every: 5}\n"
    )
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ndefaults: [base, {override /dit: toy}]\nsteps: 9\n")
    config = compose("train", ["experiment=mine", "dit.depth=5"], [tmp_path]).config
    assert (config.steps, config.level_bins, config.data.folders, config.vae, config.checkpoint.every) == (9, 3, ["a"], "v", 5)
    assert (config.dit.width, config.dit.depth) == (32, 5)
    assert compose("train", ["experiment=mine", "steps=3"], [tmp_path]).config.steps == 3
    with pytest.raises(ValueError, match="steps=many is of the wrong kind"):
        compose("train", ["experiment=mine", "steps=many"], [tmp_path])


def test_a_command_is_one_composition(monkeypatch):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose("train", [])  # Hydra's own settings are composed once a process
    composed, load = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *args, **given: composed.append(1) or load(*args, **given))
    compose("train", ["experiment=quickstart", "density=uniform", "optimizer=adamw", "steps=3", "optimizer.lr=1e-5"])
    assert len(composed) == 1
