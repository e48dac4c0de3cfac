"""What lies where nobody may write is read as ever; a command that would write there says so in one line, before the work."""

import os
import re
from pathlib import Path

import pytest

from sora.cli import run
from sora.system import files as storage
from tests.trained import diffusion_run, vae_artefact, world_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A colleague's results."""
    home = tmp_path_factory.mktemp("read only")
    world_dataset(home / "world", clips=12)
    diffusion_run(home / "dit", vae=vae_artefact(home / "vae"), data=home / "world")
    assert run("encode", [f"vae={home / 'vae'}", f"data={home / 'world'}", "text=byte", "threads=1"]) == 0
    assert run("evaluate", [f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "metrics=[loss]", "loss.clips=2", "loss.levels=1"]) == 0
    return home


@pytest.fixture
def read_only(theirs, tmp_path, monkeypatch):
    """The same for one who may not write there: root, which tests may run as, passes over the modes of folders."""
    access, blocked = os.access, storage.blocked
    within = lambda path: Path(path).absolute().is_relative_to(theirs)  # noqa: E731
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not (mode & os.W_OK and within(path)) and access(path, mode, **more))
    monkeypatch.setattr(storage, "blocked", lambda path: f"{path.parent} is read-only" if within(path) else blocked(path))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*") if path.is_file()}
    yield theirs
    # Of folders it does not hold: who reads a checkpoint of a run that he may write to holds it by links of his own meanwhile.
    assert {path: path.stat().st_mtime_ns for path in theirs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("train", ["resume={dit}"], "resume={dit}: {dit} cannot be written to; a run goes on in its own folder: copy it"),
        (
            "train",
            ["experiment=toy", "vae={vae}", "data.folders=[{world}]", "output={home}/new"],
            "output={home}/new cannot be made: {home} is",
        ),
        ("data", ["index", "{world}"], "index={world} cannot be written, .*name a folder of your own: output=FOLDER"),
        ("encode", ["vae={vae}", "data={world}", "text=byte"], "data={world} cannot be written, .*sora data index"),
        ("sample", ["checkpoint={dit}", "prompt=a"], "cannot be written to; name another folder"),
        ("evaluate", ["checkpoint={dit}", "data={world}", "metrics=[loss]"], "cannot be written to; name another folder"),
        ("evaluate", ["checkpoint={dit}", "data={world}", "metrics=[quality]"], "cannot be written to; name another folder"),
        ("export", ["checkpoint={dit}", "output={home}/export"], "output={home}/export cannot be made: {home} is read-only"),
        ("report", ["{dit}"], "{dit}/report.html: {dit} cannot be written to; name another place for it with output=FILE.html"),
        ("prepare", ["source=world", "count=3", "output={home}/data"], "output={home}/data cannot be made: {home} is read-only"),
    ],
)
def test_a_command_that_would_write_there_says_so_before_the_work(read_only, capsys, monkeypatch, verb, words, told):
    places = {"home": str(read_only), **{name: str(read_only / name) for name in ("dit", "vae", "world")}}
    monkeypatch.setattr("sora.assembly.data.vae_plan", None)
    monkeypatch.setattr("sora.assembly.data.diffusion_plan", None)
    capsys.readouterr()  # of what made them
    assert run(verb, [word.format(**places) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told.format(**places), line), line


def test_all_of_it_is_read_and_other_places_are_written(read_only, tmp_path):
    dit, world = str(read_only / "dit"), str(read_only / "world")
    assert run("sample", [f"checkpoint={dit}", "prompt=a", "steps=1", "seconds=0", "size=16x16", "fps=8", "output=samples"]) == 0
    assert run("evaluate", [f"checkpoint={dit}", f"data={world}", "metrics=[loss]", "loss.clips=2", "loss.levels=1", "output=scores"]) == 0
    (scored,) = (read_only / "dit/evaluation").glob("step-*")
    for words in ([dit, "output=run.html"], [str(scored), "output=scores.html"]):
        assert run("report", words) == 0
    assert run("compare", [str(scored), "scores"]) == 0
    assert run("export", [f"checkpoint={dit}", "output=export"]) == 0
    assert run("data", ["index", world, "output=world"]) == 0
    assert run("encode", [f"vae={read_only / 'vae'}", "data=world", "text=byte", "threads=1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"samples", "scores", "run.html", "scores.html", "export", "world"}
