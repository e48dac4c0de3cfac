"""Ctrl-C at any moment of a command that writes: what it leaves is whole, it does not pass for finished, and it can be made again."""

import shutil
from pathlib import Path

import pytest

from sora.cli import run
from sora.system.files import STAGING, file_hash, read_json
from tests.faults import Countdown, injected
from tests.trained import diffusion_run, vae_artefact, world_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("interrupts")
    world_dataset(home / "world", clips=8)
    diffusion_run(home / "dit", vae=vae_artefact(home / "vae"), data=home / "world")
    return home


def words(verb: str, home: Path, output: Path) -> list[str]:
    """A small job of each verb that writes to `output`; `encode` writes beside the clips of the dataset, so gets a copy of it."""
    if verb == "encode":
        return [f"vae={home / 'vae'}", f"data={output}", "text=byte", "batch=3", "captions_per_file=5"]
    common = [f"checkpoint={home / 'dit'}", "steps=1", f"output={output}"]
    if verb == "sample":
        return [*common, "prompt=[a,b,c]", "seconds=1", "size=16x16"]
    return [*common, f"data={home / 'world'}", "n=4", "keep=2"]


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def promised(folder: Path) -> set[str]:
    """The files that the lists of latents and of captions in a dataset say are there."""
    entries = [
        entry for path in folder.glob("*.json") if path.name.startswith(("latents-", "text-")) for entry in read_json(path)["shards"]
    ]
    return {entry[key] for entry in entries for key in ("meta", "shard", "file") if key in entry}


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("cuts", [2, pytest.param(7, marks=pytest.mark.long)])
@pytest.mark.parametrize(("verb", "last"), [("sample", "sheet.png"), ("evaluate", "scores.json"), ("encode", None)])
def test_an_interrupted_command_leaves_whole_files_and_can_be_made_again(home, tmp_path, verb, last, cuts):
    def begin(name: str) -> Path:
        if verb == "encode":
            shutil.copytree(home / "world", tmp_path / name)
        return tmp_path / name

    assert run(verb, words(verb, home, begin("before"))) == 0  # imports write files too, the first time
    with injected(Countdown(-1, interrupt)) as counted:
        assert run(verb, words(verb, home, begin("whole"))) == 0
    whole = contents(tmp_path / "whole")
    assert bool(promised(tmp_path / "whole")) == (verb == "encode")
    assert counted.seen > cuts
    for cut in {1 + number * (counted.seen - 1) // cuts for number in range(cuts)}:  # not the very last: what is done is done
        folder = begin(f"cut-{cut}")
        with injected(Countdown(cut, interrupt)):
            assert run(verb, words(verb, home, folder)) == 130
        left = contents(folder)
        assert not [name for name in left if STAGING in name], f"cut {cut} left something half-written"
        # the list of captions is written anew with each file of them, so it may be shorter than the whole run's
        same = {name: digest for name, digest in left.items() if not (name.startswith("text-") and name.endswith(".json"))}
        assert same.items() <= whole.items(), f"cut {cut} of {counted.seen} left other bytes than a whole run under the same name"
        assert last not in left, f"cut {cut} of {counted.seen} passes for finished"
        assert promised(folder) <= set(left), f"cut {cut} of {counted.seen} left a list of files that are not there"
        assert run(verb, words(verb, home, folder)) == 0
        assert contents(folder) == whole
