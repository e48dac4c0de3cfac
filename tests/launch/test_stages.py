"""Stages: finished ones are skipped, changed ones are made again with all that follows, and nothing half-made passes for whole."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sora
from sora.launch import stages
from sora.launch.stages import Stage, run_stages
from sora.system import files as storage
from tests.config.conftest import toy  # noqa: F401  the toy world is a fixture


class Commands:
    """Stands in for the processes: makes the output, or fails or is interrupted halfway where it is told to."""

    def __init__(self):
        self.ran, self.trouble, self.found = [], {}, {}

    def __call__(self, verb, overrides):
        output = Path(next(item.partition("=")[2] for item in overrides if item.startswith("resume=")))
        self.found[output.name] = output.exists()
        output.mkdir(exist_ok=True)
        (output / "half").touch()
        self.ran.append(output.name)
        trouble = self.trouble.pop(output.name, 0)
        if isinstance(trouble, BaseException):
            raise trouble
        if not trouble:
            (output / "whole").touch()
        return trouble


@pytest.fixture
def commands(monkeypatch):
    """No process is started, and commands are told apart by their words alone (composing each takes a while)."""
    made = Commands()
    monkeypatch.setattr(stages, "run_command", made)
    monkeypatch.setattr(stages, "depends", lambda stage, before, folder: storage.text_hash(repr([stage.command, *before])))
    return made


@pytest.fixture
def composing(toy, monkeypatch):  # noqa: F811
    """As `commands`, with every command really composed."""
    made = Commands()
    monkeypatch.setattr(stages, "run_command", made)
    return made


def chain(folder: Path, **extra: str) -> list[Stage]:
    def stage(name, *after, goes_on=False):
        words = (f"resume={folder / name}", *([extra[name]] if name in extra else []))
        return Stage(name, f"Make {name}", "train", words, folder / name, after, goes_on)

    return [stage("a"), stage("b"), stage("c", "a", goes_on=True), stage("d", "c", "b")]


def test_finished_stages_are_not_made_again(commands, tmp_path):
    first = run_stages(chain(tmp_path), tmp_path)
    assert commands.ran == ["a", "b", "c", "d"] and [done.stage for done in first] == commands.ran
    assert run_stages(chain(tmp_path), tmp_path) == first and len(commands.ran) == 4


def test_a_stage_whose_output_is_whole_and_would_be_refused_is_made_anew_and_half_of_it_is_gone_on_with(commands, tmp_path):
    """It may be stopped between the end of its work and the word that it is finished."""
    stage = Stage("c", "Make c", "prepare", (f"resume={tmp_path / 'c'}",), tmp_path / "c", goes_on=True, mark="whole")
    commands.trouble["c"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage], tmp_path)
    (tmp_path / "c/whole").touch()
    commands.trouble["c"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage], tmp_path)
    assert not commands.found["c"]
    run_stages([stage], tmp_path)
    assert commands.found["c"] and (tmp_path / "c/whole").exists()


def test_finished_stages_are_known_from_another_folder_after_a_move_and_as_versions_before_marked_them(composing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old 1"):
        home = Path(name)
        run_stages(chain(home)[:2], home)
        for marker in (home / "stages").glob("*.json") if name == "old 1" else ():
            stage = next(item for item in chain(home) if item.name == marker.stem)
            storage.write_json(marker, {**storage.read_json(marker), "depends": stages.depends(stage, [], None)})
    assert composing.ran == ["a", "b"] * 2
    run_stages(chain(Path("old 1"))[:2], Path("old 1"))
    run_stages(chain(tmp_path / "new")[:2], tmp_path / "new")
    Path("new").rename("moved")
    run_stages(chain(Path("moved"))[:2], Path("moved"))
    assert composing.ran == ["a", "b"] * 2


@pytest.mark.parametrize(("changed", "made"), [("a", "acd"), ("b", "bd"), ("c", "cd"), ("d", "d")])
def test_a_changed_command_is_run_again_with_all_that_follows(commands, tmp_path, changed, made):
    run_stages(chain(tmp_path), tmp_path)
    commands.ran.clear()
    run_stages(chain(tmp_path, **{changed: "steps=3"}), tmp_path)
    assert commands.ran == list(made) and not commands.found[changed]  # its old output was removed first


def test_a_changed_yaml_file_counts_as_a_change(composing, tmp_path, toy):  # noqa: F811
    run_stages(chain(tmp_path)[:2], tmp_path)
    (toy / "conf/net/wide.yaml").write_text((toy / "conf/net/wide.yaml").read_text().replace("width: 8", "width: 9"))
    composing.ran.clear()
    run_stages(chain(tmp_path)[:2], tmp_path)
    assert composing.ran == ["a", "b"]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), 1, OSError(28, "full")])
@pytest.mark.parametrize("name", ["a", "c"])
def test_a_stage_that_did_not_end_is_never_taken_for_finished(commands, tmp_path, trouble, name):
    commands.trouble[name] = trouble
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)):
        run_stages(chain(tmp_path), tmp_path)
    assert commands.ran[-1] == name and not (tmp_path / f"stages/{name}.json").exists()
    commands.ran.clear()
    run_stages(chain(tmp_path), tmp_path)
    assert commands.ran == {"a": ["a", "b", "c", "d"], "c": ["c", "d"]}[name]
    assert commands.found[name] is (name == "c")  # c goes on with its half, a is made anew


def test_half_a_stage_is_not_gone_on_with_when_its_command_changed(commands, tmp_path):
    commands.trouble["c"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_stages(chain(tmp_path), tmp_path)
    run_stages(chain(tmp_path, c="steps=3"), tmp_path)
    assert commands.found["c"] is False


def test_what_follows_a_remade_stage_is_stale_at_once(commands, tmp_path):
    """Interrupted right after `a` was made again, the next run must not take the old `c` for finished."""
    run_stages(chain(tmp_path), tmp_path)
    commands.trouble["a"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_stages(chain(tmp_path), tmp_path, again="a")
    commands.ran.clear()
    run_stages(chain(tmp_path), tmp_path)
    assert commands.ran == ["a", "c", "d"]


def test_seconds_of_an_interrupted_attempt_count(commands, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: now.__setitem__(0, now[0] + 10.0) or now[0])
    commands.trouble["c"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_stages(chain(tmp_path), tmp_path)
    assert {done.stage: done.seconds for done in run_stages(chain(tmp_path), tmp_path)} == {"a": 10, "b": 10, "c": 20, "d": 10}


@pytest.mark.parametrize("damage", ["", "{", '{"stage": "a"}', "[]"])
def test_a_damaged_marker_means_make_it_again(commands, tmp_path, damage):
    run_stages(chain(tmp_path), tmp_path)
    (tmp_path / "stages/b.json").write_text(damage)
    commands.ran.clear()
    run_stages(chain(tmp_path), tmp_path)
    assert commands.ran == ["b", "d"]


def test_a_stage_that_adds_to_anothers_folder_removes_nothing(commands, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/shards").touch()
    stage = Stage("c", "Add to c", "train", (f"resume={tmp_path / 'c'}",), None)
    run_stages([stage], tmp_path)
    run_stages([stage], tmp_path, again="c")
    assert commands.ran == ["c", "c"] and (tmp_path / "c/shards").exists()


def test_a_removed_output_is_made_again(commands, tmp_path):
    import shutil

    run_stages(chain(tmp_path), tmp_path)
    shutil.rmtree(tmp_path / "b")
    commands.ran.clear()
    run_stages(chain(tmp_path), tmp_path)
    assert commands.ran == ["b", "d"]


def test_a_mistake_in_the_last_command_is_told_before_the_first_runs(composing, tmp_path):
    with pytest.raises(ValueError, match=r"stage 'd'.*did you mean 'steps'"):
        run_stages(chain(tmp_path, d="stepz=3"), tmp_path)
    assert not composing.ran


def test_an_unknown_stage_to_make_again_is_refused(commands, tmp_path):
    with pytest.raises(ValueError, match="the stages: a, b, c, d"):
        run_stages(chain(tmp_path), tmp_path, again="e")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_stage_which_may_save(tmp_path, number):
    """Twice to the whole: the stage gets it, saves, and we end with the signal's code."""
    (tmp_path / "child.py").write_text(
        "import signal, sys, time, pathlib\n"
        f"stop = lambda *_: (time.sleep(0.3), pathlib.Path({str(tmp_path / 'saved')!r}).touch(), sys.exit(128 + {int(number)}))\n"
        f"signal.signal({int(number)}, stop)\n"
        f"signal.pthread_sigmask(signal.SIG_UNBLOCK, [{int(number)}])\n"  # as any command of ours does that was born deaf
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)\n"
    )
    code = (
        "import sys, subprocess\nfrom sora.launch import stages\nreal = subprocess.Popen\n"
        f"stages.processes.subprocess.Popen = lambda command, **_: real([sys.executable, {str(tmp_path / 'child.py')!r}])\n"
        "try:\n    stages.run_command('train', [])\nexcept KeyboardInterrupt as asked:\n    sys.exit(asked.code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(sora.__file__).parent.parent)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(30) == 128 + number and (tmp_path / "saved").exists()


def test_the_marker_tells_what_made_it(commands, tmp_path):
    run_stages(chain(tmp_path), tmp_path)
    marker = json.loads((tmp_path / "stages/a.json").read_text())
    assert marker["command"] == f"sora train resume={tmp_path / 'a'}" and marker["commit"] and len(marker["depends"]) == 64
