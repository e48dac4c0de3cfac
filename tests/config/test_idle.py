"""A key that nothing reads is refused in every verb, before the work; one without which the work is another is taken."""

import pytest

from sora.cli import run
from sora.config.check import refuse_unmeasured
from sora.config.command_line.idle import refuse_idle
from sora.config.compose import compose
from sora.data_command import idle

pytestmark = pytest.mark.slow
TRAIN = ["experiment=toy", "vae=x", "data.folders=[x]"]


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("data", ["show", ".", "decode=0.5"], "decode=0.5 has no effect with show=; leave it out"),
        ("data", ["check", ".", "shards=*.tar"], "shards=*.tar has no effect with check="),
        ("data", ["index", ".", "sample=3"], "sample=3 has no effect with index="),
        ("data", ["show", ".", "captions.suffixes=[txt]"], "captions.suffixes has no effect with show="),
        ("train", [*TRAIN, "evaluation.every=9"], "evaluation.every=9 measures nothing with evaluation=none; choose what is measured: "),
        ("plan", [*TRAIN, "evaluation.every=9"], "evaluation.every=9 measures nothing"),
    ],
)
def test_what_nothing_reads_is_refused(verb, words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(verb, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_what_is_read_is_taken():
    taken = {"index": ["shards=*", "captions.keys={dense: x}", "workers=1"], "check": ["decode=1"], "show": ["sample=3"]}
    for action, words in taken.items():
        composed = compose("data", [f"{action}=x", *words])
        refuse_idle(composed.config, composed.said, idle(composed.config, action), why="")
    for words in (["evaluation=loss", "evaluation.every=9"], ["evaluation=none"], ["evaluation.every=null"]):
        refuse_unmeasured(compose("train", [*TRAIN, *words]).config)
    assert set(compose("train", TRAIN).config.evaluation) == {"every"}  # by which it is told that none is chosen
