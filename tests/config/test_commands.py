"""A command that a message names does what it says, whatever its folders are called."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from sora.config.command_line.commands import command, option_words
from sora.config.command_line.following import after_encode, after_prepare
from sora.config.command_line.verbs import verbs, worded
from sora.config.compose import compose, config_dir, groups
from sora.system.files import refuse_within

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


@pytest.mark.parametrize("name", [*ODD, ".", "..", "-x", "over=1", "density=uniform,seed=0", "~x/y", "watch=1/2"])
@pytest.mark.parametrize("verb", ["compare", "report"])
def test_folders_without_a_key_arrive_as_they_are(verb, name):
    words = shlex.split(command(verb, Path(name), Path("other")))
    composed = compose(verb, worded(verbs()[verb], words[2:])).config
    assert [Path(place) for place in composed["scores" if verb == "compare" else "place"]] == [Path(name), Path("other")]


def test_no_message_writes_a_place_into_a_command_by_itself():
    said = re.compile(rf"sora ({'|'.join(verbs())})( -m)? ([^\"'{{]*=)?{{(?!command\(|shlex\.)")
    found = [
        path.name for path in Path("sora").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines() if said.search(line)
    ]
    assert not found


class Clips:
    """What an index says of clips' sizes."""

    selection = None

    def __init__(self, *sizes: tuple[int, int, int]) -> None:
        self.frames, self.heights, self.widths = (np.array(each) for each in zip(*sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [
        ([(64, 256, 256)] * 3, None),
        ([(16, 64, 64)] * 3, None),
        ([(8, 32, 32), (8, 24, 32), (9, 32, 47)], [[5, 32, 32], [1, 32, 32]]),
        ([(1, 30, 30)] * 3, [[1, 24, 24]]),
        ([(30, 200, 20), (30, 20, 200)], [[9, 48, 16], [1, 48, 16]]),  # none is as large as the middle of all heights and widths
        ([(30, 6, 200)], None),
    ],
)
def test_the_vae_that_follows_has_crops_that_clips_hold(sizes, shapes, tmp_path):
    words = shlex.split(after_prepare(tmp_path, Clips(*sizes)))[2:]
    config = compose("train", words).config
    if shapes is not None:
        assert OmegaConf.to_container(config.plan.shapes) == shapes
    held = [any(all(np.array(size) >= shape) for size in sizes) for shape in config.plan.shapes]
    assert all(held) or sizes == [(30, 6, 200)]  # which no crop of a VAE fits in


@pytest.mark.slow
def test_what_follows_is_made_outside_of_the_dataset_that_one_stands_in(tmp_path, monkeypatch):
    """`sora data index .` and `sora encode data=..`: the folder has its name, and the output lies beside it, where it is not refused."""
    home = tmp_path / "2026_11_29 ü"
    (home / "deep").mkdir(parents=True)
    (home / "dataset.json").write_text("{}")
    for standing, said, output in (
        (home, ".", "../outputs/2026_11_29 ü"),
        (home / "deep", "..", "../../outputs/2026_11_29 ü"),
        (home / "deep", str(home), "../../outputs/2026_11_29 ü"),
        (tmp_path, home.name, "outputs/2026_11_29 ü"),
    ):
        monkeypatch.chdir(standing)
        vae = compose("train", shlex.split(after_prepare(Path(said), Clips((64, 256, 256))))[2:]).config
        node = compose("encode", ["vae=v", f"data={said}"]).config.text
        model = compose("train", shlex.split(after_encode(Path("v"), Path(said), shapes=[[1, 2, 2]], text=node))[2:]).config
        assert (vae.output, model.output) == (f"{output}_vae", output)
        assert list(vae.data.folders) == [said]
        refuse_within(Path(vae.output))


@pytest.mark.parametrize("said", [["text=minilm"], ["text=byte", "text.max_tokens=99"], ["text=umt5_xxl", "text.template=a {}"]])
def test_the_words_of_an_option_compose_to_the_same_node(said):
    node = compose("encode", ["vae=v", "data=d", *said]).config.text
    words = option_words("text", node, groups([config_dir()])["text"])
    assert compose("encode", ["vae=v", "data=d", *words]).config.text == node
    assert sorted(words) == sorted(said)


def test_a_node_of_no_option_has_no_words():
    node = OmegaConf.create({"_target_": "sora.text.ByteEncoder", "of": "another time"})
    assert option_words("text", node, groups([config_dir()])["text"]) == ()
