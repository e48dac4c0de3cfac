"""A command that a message names does what it says, whatever its folders are called."""

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sora.configs.commands import command, option_words
from sora.configs.compose import compose, config_dir, groups

ODD = [
    "data/mine",
    "2026_11_29 ü",
    "it's",
    "a,b",
    "[set]",
    "x=1",
    "-",
    "1e3",
    "été/v(1)",
    'say "so"',
    "a#b",
    "~x",
    "a\\b",
    "trailing ",
    "{a: b}",
    "null",
    "'quoted'",
    "🎈:(",
]


@pytest.mark.parametrize("name", ODD)
def test_a_named_folder_arrives_as_it_is(name):
    words = shlex.split(command("encode", vae=name, data=f"sets/{name}"))
    assert words[:2] == ["sora", "encode"]
    composed = compose("encode", words[2:]).config
    assert (Path(composed.vae), composed.data) == (Path(name), f"sets/{name}")


@pytest.mark.parametrize("name", ODD)
def test_a_named_list_of_folders_arrives_as_it_is(name):
    words = shlex.split(command("train", "task=vae", data__folders=[name, "other"], plan__shapes=[[9, 32, 32], [1, 8, 8]]))
    composed = compose("train", words[2:]).config
    assert list(map(Path, composed.data.folders)) == [Path(name), Path("other")]
    assert OmegaConf.to_container(composed.plan.shapes) == [[9, 32, 32], [1, 8, 8]]


@pytest.mark.parametrize(("shell", "quoted"), [("/bin/bash", False), ("", False), ("/usr/bin/zsh", True)])
def test_brackets_are_quoted_where_the_shell_would_refuse_them(monkeypatch, shell, quoted):
    """zsh takes them for a pattern of files, and ends with "no matches found"."""
    monkeypatch.setenv("SHELL", shell)
    said = command("train", data__folders=["data/mine"])
    assert said == ("sora train 'data.folders=[data/mine]'" if quoted else "sora train data.folders=[data/mine]")


@pytest.mark.parametrize("said", [["text=minilm"], ["text=byte", "text.max_tokens=99"], ["text=umt5_xxl", "text.template=a {}"]])
def test_the_words_of_an_option_compose_to_the_same_node(said):
    node = compose("encode", ["vae=v", "data=d", *said]).config.text
    words = option_words("text", node, groups([config_dir()])["text"])
    assert compose("encode", ["vae=v", "data=d", *words]).config.text == node
    assert sorted(words) == sorted(said)


def test_a_node_of_no_option_has_no_words():
    node = OmegaConf.create({"_target_": "sora.text.ByteEncoder", "of": "another time"})
    assert option_words("text", node, groups([config_dir()])["text"]) == ()
