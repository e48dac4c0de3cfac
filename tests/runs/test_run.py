"""The run folder: made once, owned by one process, never silently another run."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from sora.runs.jsonl import MetricsLog, read
from sora.runs.run import Run, changes, create, open_run, owned, refuse_changes
from tests.faults import Countdown, die, in_child, injected

STORED = {
    "seed": 0,
    "dit": {"width": 64, "rope": {"axes": [8, 4, 4]}},
    "optimizer": {"lr": 1e-3},
    "trainer": {"precision": "32-true", "threads": 2},
    "workers": 0,
    "checkpoint": {"every": 10},
}


def test_a_folder_that_holds_a_run_or_anything_else_is_not_made_into_another(tmp_path):
    create(tmp_path / "run", config="seed: 0\n", info={"kind": "vae"})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds a run already; continue it with resume="):
        create(tmp_path / "run", config="seed: 1\n", info={"kind": "vae"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match="exists and is no run"):
        create(tmp_path / "photos", config="", info={"kind": "vae"})
    with pytest.raises(ValueError, match="is no run"):
        open_run(tmp_path / "photos")


@pytest.mark.slow
def test_a_run_is_made_whole_or_not_at_all(tmp_path):
    def make(folder: Path, at: int) -> None:
        with injected(Countdown(at, die)):
            create(folder, config="seed: 0\n", info={"kind": "vae"})

    whole = 0
    for at in range(1, 60):
        folder = tmp_path / f"run{at}"
        if in_child(lambda folder=folder, at=at: make(folder, at)) == 0:
            break
        if folder.exists():
            whole += 1
            assert open_run(folder).config == {"seed": 0}
            assert open_run(folder).info["kind"] == "vae"
        else:
            create(folder, config="seed: 0\n", info={"kind": "vae"})
    assert at > 15 and whole > 0
    assert not list(tmp_path.glob(".staging-*-run3"))


def test_two_processes_do_not_train_in_one_run_and_a_dead_one_holds_nothing(tmp_path):
    run = create(tmp_path / "run", config="seed: 0\n", info={"kind": "vae"})
    wreck = run.checkpoints / ".staging-1-step-00000005"
    wreck.mkdir()

    def other() -> None:
        try:
            with owned(run):
                os._exit(3)
        except ValueError:
            os._exit(7)

    with owned(run):
        assert not wreck.exists()
        assert in_child(other) == 7
    assert in_child(other) == 3  # dies while it owns the run
    assert in_child(other) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("dit.width", 128),
        ("dit.rope.axes", [4, 8, 4]),
        ("optimizer.lr", 2e-3),
        ("trainer.precision", "bf16-mixed"),
        ("dit.depth", 3),
    ],
)
def test_a_changed_key_is_refused_by_name_unless_it_is_allowed_on_purpose(key, value):
    asked = json.loads(json.dumps(STORED))
    inner = asked
    *path, last = key.split(".")
    for name in path:
        inner = inner[name]
    inner[last] = value
    found = changes(STORED, asked, free=("workers", "checkpoint", "trainer.threads"))
    assert list(found) == [key]
    with pytest.raises(ValueError, match=rf"{key}: .* in the run, .* now[\s\S]*resume_allow=\[{key}\]"):
        refuse_changes(found, allowed=())
    with pytest.raises(ValueError, match="resuming would change"):
        refuse_changes(found, allowed=("see",))
    assert list(refuse_changes(found, allowed=(key.split(".")[0],))) == [key]


def test_another_vae_takes_the_place_of_the_one_that_a_run_took_along(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for file in ("vae.json", "vae.safetensors", "of its owner"):
            (tmp_path / name / file).write_text(name)
    depends = [{"vae": 64 * name, "text": "t"} for name in "ab"]
    run = create(tmp_path / "run", config="", info={"kind": "diffusion", "depends": depends[0]}, vae=tmp_path / "a")
    run.has_saved(3)
    run.has_saved(5)
    for now, told, aside in ((1, "b", "a"), (0, "a", "b"), (0, "a", "b"), (1, "b", "a")):
        run.depend_on(depends[now], vae=tmp_path / told)
        assert {path.name: path.read_text() for path in run.vae.iterdir()} == {"vae.json": told, "vae.safetensors": told}
        assert (run.folder / f"vae-{12 * aside}" / "vae.json").read_text() == aside
        assert run.info["depends"] == depends[now] and run.info["saved"] == 3


def test_free_keys_change_freely():
    asked = {**STORED, "workers": 4, "checkpoint": {"every": 99, "keep": 1}, "trainer": {"precision": "32-true", "threads": 1}}
    assert changes(STORED, asked, free=("workers", "checkpoint", "trainer.threads")) == {}


def test_metrics_lines_are_whole_or_not_there(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.write({"step": 1, "loss": float("nan"), "bins": [0.5, float("inf")]})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:7]))  # a disk with seven bytes left
    assert not log.write({"step": 2, "loss": 0.5})
    assert "7 of" in log.problem
    monkeypatch.setattr(os, "write", real)
    assert log.write({"step": 3, "loss": 0.25})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [{"step": 1, "loss": None, "bins": [0.5, None]}, {"step": 3, "loss": 0.25}]


def test_rewinding_drops_later_and_torn_lines_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n\n{"step": 3}\n{"ste')
    MetricsLog(path).rewind(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [row["step"] for row in read(path)] == [1, 2]


CHAIN = "a0: x\n" + "".join(f"a{number + 1}: '{f'${{a{number}}}' * 3}'\n" for number in range(12))
BOMB = "a: &a [1, 1]\n" + "".join(f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in pairwise("abcdefghijkl"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "alias"),
        (CHAIN, "36 references could stand for very much"),
        ("a: " + "x" * 100_000 + "\nb: [" + "'${a}', " * 999 + "]", "999 references"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "damaged"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "damaged"),
        ("a: [1", "damaged"),
        ("- a", "it is a list of 1, and a mapping fits"),
        ("a: 1\n---\nb: 2", "damaged"),
    ],
    ids=["aliases of aliases", "references to references", "references to much", "very deep", "a call", "cut", "a list", "two documents"],
)
def test_a_strangers_configuration_is_data_or_refused(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path)
    run.config_file.write_text(text)
    with pytest.raises(ValueError, match=said):
        _ = run.config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "said",
    [
        [],
        {},
        {"kind": "video"},
        {"kind": ["vae"]},
        {"kind": "vae", "depends": []},
        {"kind": "vae", "depends": {"vae": 3}},
        {"kind": "vae", "code": 1},
    ],
    ids=json.dumps,
)
def test_a_run_that_does_not_say_what_it_is_is_refused(tmp_path, said):
    run = create(tmp_path / "run", config="{}", info={"kind": "vae", "depends": {"vae": "abc"}})
    assert run.info["depends"] == {"vae": "abc"}
    run.info_file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="run.json is damaged"):
        _ = run.info
