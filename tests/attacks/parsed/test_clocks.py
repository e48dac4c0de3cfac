"""Clocks that were set back, and runs and datasets of any age: a resume and a page come of them, or one line, whatever the times say."""

import json
import os

import pytest

from sora import cli
from tests.attacks.harness import in_turn

AGES = {"of 1970": 0, "of the year 30,000": 880_000_000_000, "before 1970": -(10**9)}


@pytest.fixture
def told(capsys):
    def run(*words):
        code = cli.run(words[0], list(words[1:]))
        found = capsys.readouterr()
        assert "Traceback" not in found.err and code in (0, 2), found.err
        assert code == 0 or found.err.strip().splitlines()[-1].startswith(f"sora {words[0]}: "), found.err
        return code, found.out + found.err

    return run


@pytest.mark.parametrize("age", AGES)
def test_files_of_any_age_are_read_as_any_others(material, told, age):
    run = material.copy("live")
    for path in [run, *run.rglob("*")]:
        os.utime(path, (AGES[age], AGES[age]))
    assert told("report", f"place=[{run}]")[0] == 0
    assert (run / "report.html").stat().st_size > 1000


def written(run, **changes):
    path = run / "goodput.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    path.write_text(path.read_text() + json.dumps({**line, "first": 2, "last": 3, **changes}) + "\n")


TIMES = {
    "a part that begins before the one before it": {"began": 1.0, "ended": 2.0},
    "a part that ends before it begins": {"began": 2e9, "ended": 1e9},
    "a part of the future": {"began": 4e9, "ended": 4.1e9},
    "a part without an end of times": {"began": 0.0, "ended": 1e300},
    "a part of before 1970": {"began": -5e9, "ended": -4e9},
    "seconds beyond measure": {"start": 1e300, "step": 1e300},
    "seconds below zero": {"start": -1e9},
    "steps that lie before the ones before them": {"first": 1, "last": 0},
    "steps beyond measure": {"first": 10**15, "last": 10**15 + 1},
    "steps that were undone beyond measure": {"undone": [[0, 10**15]]},
    "no seconds at all": {"start": 0.0, "data": 0.0, "step": 0.0, "checkpoint": 0.0, "end": 0.0, "began": 5.0, "ended": 5.0},
}


@pytest.mark.parametrize("what", TIMES)
def test_the_times_of_a_strangers_run_are_told_or_refused(material, told, what):
    run = material.copy("live")
    written(run, **TIMES[what])
    code, said = told("report", f"place=[{run}]")
    assert code == 0 or "goodput.jsonl" in said


EVENTS = (
    {"time": -1e300},
    {"time": "x"},
    {"time": 1e300},
    {"time": None},
    {"step": 10**18},
    {"step": -1},
    {"event": "\x1b[2J"},
    {"reason": [1]},
)


@pytest.mark.parametrize(
    ("change", "kind"), in_turn(EVENTS, ["resumed", "signal", "skipped", "save failed", "of another version"]), ids=str
)
def test_events_of_strangers_are_told_or_refused(material, told, kind, change):
    run = material.copy("live")
    (run / "events.jsonl").write_text(json.dumps({"time": 1.0, "event": kind, "step": 1, "reason": "x", **change}) + "\n")
    code, said = told("report", f"place=[{run}]")
    assert "\x1b" not in said and (code == 0 or "events.jsonl" in said)
    assert code or b"\x1b" not in (run / "report.html").read_bytes()
