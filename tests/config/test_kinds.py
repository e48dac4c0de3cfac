"""What a key takes decides what a word means: every key of every command, with every odd word, gives a value of its kind or one line."""

import os
from functools import cache

import pytest
import yaml
from omegaconf import OmegaConf

from sora.cli import main
from sora.config.command_line.verbs import verbs
from sora.config.compose import compose, flatten
from sora.config.kinds import Kinds, ValueKind, fits, of_annotation
from tests.config.test_grammar import ODD

pytestmark = pytest.mark.slow

WORDS = [
    *ODD, "True", "3", "-1", "1.5", "nan", "inf", "-.inf", "9" * 5000, "1e999",
    "[1, 2]", "[[1], 2]", "[true]", "['null']", "{}", "{_target_: os.system}", "{b: [1}", "[a,]",
    "${seed}", "???", "a,b", "range(0,3)", "choice(a,b)", "\udcff", "~/x", "~nobody-here/x",
]  # fmt: skip
WITH = {"train": ["task=diffusion", "task=vae"], "prepare": ["source=folder", "source=world"], "plan": ["cluster=h100"]}


@cache
def composed(verb: str, words: tuple[str, ...]) -> Kinds:
    from sora.config.compose import Loader, config_dir, groups, kinds_of

    loader = Loader(verb, [])
    return kinds_of(verb, loader.load(words), groups([config_dir()]))


def everything() -> list[tuple[str, tuple[str, ...]]]:
    return [(verb, (word,)) for verb in verbs() for word in WITH.get(verb, [])] + [(verb, ()) for verb in verbs() if verb not in WITH]


@pytest.mark.parametrize(("verb", "words"), everything())
def test_every_key_takes_every_odd_word_as_its_kind_or_refuses_it_in_one_line(verb, words):
    kinds = composed(verb, words)
    silent = []
    for key in flatten(dict(kinds.tree)):
        kind = kinds.of(key)
        if kind.any and key not in ("stretch", "launcher"):  # groups without an option
            silent.append(key)
        for word in WORDS:
            try:
                value = kinds.value(key, word, kinds.tree)
            except ValueError as error:
                told = str(error)
                assert told.startswith(f"{key}={word}") and type(error) is ValueError, told
                assert "\n" not in told.replace(word, ""), told
            else:
                assert fits(value, kind) or (isinstance(value, dict) and kind.node), (key, word, value)
                if kind.scalars <= {"text", "path"} and kind.scalars and not kind.items and value is not None:
                    assert value in (word, word[1:-1].replace("\\\\", "\\")), (key, word, value)
    assert not silent, (
        f"{silent}: say what they take, with a mark in the comment: `# <path> …` (sora/config/kinds.py tells which there are)"
    )


def test_a_text_or_a_path_is_the_word_as_it_was_typed_through_the_whole_command(tmp_path, monkeypatch, capsys):
    for word in (text for text in ODD if text.strip() and text != "null"):
        config = compose("evaluate", [f"checkpoint={word}", f"caption={word}", f"data={word}"]).config
        plain = word[1:-1] if word == "'a'" else word
        assert config.checkpoint in (plain, f"{tmp_path.home()}") and config.caption == plain, word
        if word[0] not in "[{":
            assert config.data in (plain, f"{tmp_path.home()}")
        text = OmegaConf.to_yaml(config)
        assert yaml.safe_load(text)["caption"] == OmegaConf.create(text).caption == plain, word
        capsys.readouterr()
        assert main(["evaluate", f"checkpoint={word}", f"caption={word}", "--cfg", "job"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["caption"] == plain


def test_null_is_nothing_where_nothing_may_be_and_a_word_in_quotes_or_elsewhere():
    assert compose("evaluate", ["caption=null"]).config.caption is None
    assert compose("evaluate", ["caption='null'"]).config.caption == "null"
    assert compose("evaluate", ["checkpoint=null", "kernel=null"]).config.kernel == "null"
    with pytest.raises(ValueError, match=r"^steps=null is of the wrong kind: it takes a whole number \(as it stands: 24\)$"):
        compose("evaluate", ["steps=null"])


def test_lists_are_lists_and_a_text_for_one_is_refused_with_how_it_is_written():
    config = compose("sample", ["checkpoint=x", "prompt=[a cat, a dög, 'with, comma', 1e3, null]"]).config
    assert config.prompt == ["a cat", "a dög", "with, comma", "1e3", "null"]
    assert compose("sample", ["prompt=a, b"]).config.prompt == "a, b"
    assert compose("sample", ["prompt='[a, b]'"]).config.prompt == "[a, b]"
    config = compose(
        "train", ["data.folders=[été/set, 2026_11_29, v(1)/set]", "launcher=slurm", "launcher.options=[--mem=0, --exclusive]"]
    ).config
    assert config.data.folders == ["été/set", "2026_11_29", "v(1)/set"] and config.launcher.options == ["--mem=0", "--exclusive"]
    with pytest.raises(ValueError, match=r"data.folders=data/world is of the wrong kind: it takes a list .* such as \[data/world\]$"):
        compose("train", ["data.folders=data/world"])
    assert compose("plan", ["task=vae", "plan.shapes=[[9, 64, 64]]"]).config.plan.shapes == [[9, 64, 64]]
    curriculum = compose("train", ["plan.curriculum=[{until: 100000, images: 1.0}, {until: 500000, frames: 5}]"]).config.plan.curriculum
    assert curriculum == [{"until": 100000, "images": 1.0}, {"until": 500000, "frames": 5}]


def test_numbers_that_accounts_and_times_are_written_with_stay_what_was_typed():
    launcher = compose(
        "train", ["launcher=slurm", "launcher.account=0012345", "launcher.partition=1e3", "launcher.time=1:30"]
    ).config.launcher
    assert (launcher.account, launcher.partition, launcher.time) == ("0012345", "1e3", "1:30")


def test_a_mapping_that_is_typed_is_the_whole_mapping_and_its_values_are_of_its_kind():
    config = compose("train", ["experiment=quickstart", "data.captions={dense: 1, 2026_1: .5}"]).config
    assert config.data.captions == {"dense": 1, "2026_1": 0.5}  # and not the experiment's beside it
    assert compose("train", ["data.captions={dense: 1}", "data.captions.short=2"]).config.data.captions == {"dense": 1, "short": 2}
    for wrong in ("data.captions={dense: much}", "data.captions=dense", "data.captions=[dense]", "data.captions={dense}"):
        with pytest.raises(ValueError, match=r"^data.captions="):
            compose("train", [wrong])
    assert compose("evaluate", ["real={n: 3, start: first}"]).config.real.n == 3
    with pytest.raises(ValueError, match="real=.n: many"):
        compose("evaluate", ["real={n: many}"])


def test_a_whole_number_may_be_written_as_a_float_and_a_half_one_is_refused():
    assert compose("train", ["steps=1e3"]).config.steps == 1000 and isinstance(compose("train", ["steps=1e3"]).config.steps, int)
    assert compose("train", ["steps=1_000"]).config.steps == 1000
    for word in ("1.5", "nan", "9" * 40, "0x10", "1:30", "'3'", "true", "x", "", "1,2"):
        with pytest.raises(ValueError, match=r"^steps="):
            compose("train", [f"steps={word}"])


def test_the_home_folder_is_meant_by_a_tilde_wherever_the_path_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/home.yaml").write_text("# @package _global_\noutput: ~/runs/a\ndata: {folders: [~/set, a~b]}\n")
    config = compose("train", ["experiment=home", "init=~/w", "vae=./~/x"], [tmp_path / "mine"]).config
    assert (config.output, config.init, config.vae) == (f"{tmp_path}/runs/a", f"{tmp_path}/w", "./~/x")
    assert config.data.folders == [f"{tmp_path}/set", "a~b"]
    with pytest.raises(ValueError, match="there is no home folder of '~nobody-here'"):
        compose("train", ["output=~nobody-here/x"])


def test_what_a_file_says_is_of_the_kind_too_and_yaml_is_told_from_what_was_meant(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, text, told in [
        (
            "a",
            "output: 2026_11_29",
            "experiment/a.yaml: output=20261129 is of the wrong kind: it takes a path or null; YAML reads it as a number",
        ),
        ("b", "data: {folders: data/world}", "data.folders='data/world' is of the wrong kind: it takes a list"),
        ("c", "steps: many", "steps='many' is of the wrong kind: it takes a whole number"),
        ("d", "checkpoint: null", "checkpoint=None is of the wrong kind"),
        ("e", "resume_allow: [1]", "resume_allow=\\[1\\] is of the wrong kind"),
        ("f", "seed: yes", "seed=True is of the wrong kind"),
    ]:
        (tmp_path / f"experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
        with pytest.raises(ValueError, match=told):
            compose("train", [f"experiment={name}"], [tmp_path])


@pytest.mark.parametrize("name", ["2026_11_29", "1e3", "true", "a b", "ü", "007"])
def test_an_option_is_called_what_its_file_is(tmp_path, name):
    (tmp_path / "experiment").mkdir()
    (tmp_path / f"experiment/{name}.yaml").write_text("# @package _global_\nsteps: 7\n")
    made = compose("train", [f"experiment={name}", "seed=3"], [tmp_path])
    assert made.config.steps == 7 and made.choices["experiment"] == name


def test_annotations_and_marks_say_one_thing():
    assert of_annotation("Sequence[str] | None") == ValueKind(items=of_annotation("text"), null=True)
    assert of_annotation("[path]") == of_annotation("Sequence[Path]")
    assert of_annotation("{number}") == of_annotation("Mapping[str, float]") == of_annotation("dict[str, float]")
    assert of_annotation("path|[path]") == of_annotation("Path | Sequence[Path]")
    assert of_annotation("Literal['a', 'b']") == of_annotation("str") and of_annotation("Any").any and of_annotation("a b").any
    assert of_annotation("Callable[[int], float] | None") == ValueKind(node=True, null=True) == of_annotation("Rope | None")


def test_a_path_to_be_written_makes_nothing_on_its_way(tmp_path, monkeypatch):
    """`x/..` of an x that is not there would make x; of one that is there, maybe a link, it is what the system makes of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far/there").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/there")
    wanted = {
        "./x/../y": "y",
        "x/../../y": "../y",
        "x/z/../../y": "y",
        "../../y": "../../y",
        "link/../y": "link/../y",
        "link/x/../y": "link/y",
        f"{tmp_path}/x/../y": f"{tmp_path}/y",
        "x..y/..z": "x..y/..z",
    }
    for said, meant in wanted.items():
        config = compose("prepare", ["source=world", f"output={said}"]).config
        assert config.output == meant
        assert os.path.realpath(config.output) == os.path.realpath(said)
    assert compose("prepare", ["input=x/../y", "output=z"]).config.input == "x/../y"  # what is read is the system's affair
