"""The account of a run's time: every second in one phase, over restarts too."""

import json
import math
import time

import pytest

from sora.training.logging import goodput as phases
from sora.training.logging.goodput import PHASES, Goodput, Phases, totals


@pytest.fixture
def clock(monkeypatch):
    """A time that only moves when told to."""
    now = {"value": 1000.0}
    monkeypatch.setattr(phases.time, "monotonic", lambda: now["value"])
    monkeypatch.setattr(phases.time, "time", lambda: 5000.0 + now["value"])

    def move(seconds: float) -> None:
        now["value"] += seconds

    return move


def process(
    folder, clock, *, first: int, last: int, step: float, data: float, kept: bool = True, back: dict[int, int] | None = None
) -> Goodput:
    """One process that makes the steps from `first` to `last`, with a save of 2 s in the middle. back: in which step to which."""
    run = Phases(before=7.0)
    account = Goodput(folder, run, first=first)
    clock(3.0)
    for number in range(first, last):
        run.enter("data", number)
        clock(data)
        run.enter("step", number)
        clock(step)
        if number == (first + last) // 2:
            with run.during("checkpoint"):
                clock(2.0)
        if back and number + 1 in back:
            run.enter("data", number + 1)
            account.undo(back[number + 1], number + 1)
    run.enter("end", last)
    clock(1.0)
    if kept:
        account.write()
    return account


def test_the_phases_of_a_process_are_its_wall_time(tmp_path, clock):
    process(tmp_path, clock, first=0, last=10, step=4.0, data=0.5)
    (line,) = phases.read(tmp_path / "goodput.jsonl")
    assert {name: line[name] for name in PHASES} == {
        "start": 10.0, "data": 5.0, "step": 40.0, "checkpoint": 2.0, "evaluation": 0.0, "end": 1.0
    }  # fmt: skip
    assert sum(line[name] for name in PHASES) == line["ended"] - line["began"]


def test_steps_made_again_are_wasted_and_time_without_a_process_is_down(tmp_path, clock):
    process(tmp_path, clock, first=0, last=10, step=4.0, data=0.5)
    clock(100.0)
    account = process(tmp_path, clock, first=6, last=20, step=4.0, data=0.5)  # steps 7 to 10 were lost
    first, second = phases.read(tmp_path / "goodput.jsonl")
    assert (first["wasted"], second["wasted"]) == (0.0, 16.0)
    assert second["down"] == 93.0  # the second one began 7 s before its account did
    total = totals([first, second])
    assert math.isclose(total["wall"], second["ended"] - first["began"])
    assert math.isclose(total["useful"], 20 * 4.0)
    assert f"{total['goodput']:.1%}" in account.told()


def test_a_run_that_was_complete_was_not_down_until_it_was_made_longer(tmp_path, clock):
    process(tmp_path, clock, first=0, last=10, step=4.0, data=0.5).write(complete=True)
    clock(1_000_000.0)
    process(tmp_path, clock, first=10, last=20, step=4.0, data=0.5)  # stopped
    clock(100.0)
    process(tmp_path, clock, first=20, last=30, step=4.0, data=0.5).write(complete=True)
    lines = phases.read(tmp_path / "goodput.jsonl")
    assert [line["down"] for line in lines] == [0.0, 0.0, 93.0]
    assert totals(lines)["wall"] == pytest.approx(lines[-1]["ended"] - lines[0]["began"] - (1_000_000.0 - 7.0))


def test_steps_that_are_lost_twice_are_counted_twice(tmp_path, clock):
    for first, last in ((0, 10), (6, 12), (6, 9), (9, 15)):
        process(tmp_path, clock, first=first, last=last, step=4.0, data=0.5)
    lines = phases.read(tmp_path / "goodput.jsonl")
    assert [line["wasted"] for line in lines] == [0.0, 16.0, 24.0, 0.0]
    assert math.isclose(totals(lines)["useful"], 15 * 4.0)


def test_steps_that_a_rollback_undid_are_wasted_once(tmp_path, clock):
    """Going back from step 10 to the weights of step 6 undoes four steps of 4 s, whoever has made them and whatever happens after."""
    process(tmp_path, clock, first=0, last=8, step=4.0, data=0.5)
    process(tmp_path, clock, first=8, last=10, step=4.0, data=0.5, back={10: 6})
    lines = phases.read(tmp_path / "goodput.jsonl")
    assert [(line["wasted"], line["undone"]) for line in lines] == [(0.0, []), (16.0, [[6, 10]])]
    assert math.isclose(totals(lines)["useful"], 6 * 4.0)
    # killed before anything was saved: it makes them again, undoes them again, and goes back once more and further
    process(tmp_path, clock, first=6, last=12, step=4.0, data=0.5, back={10: 6, 12: 4})
    process(tmp_path, clock, first=3, last=12, step=4.0, data=0.5)
    lines = phases.read(tmp_path / "goodput.jsonl")
    assert [line["wasted"] for line in lines] == [0.0, 16.0, 16.0 + 8.0 + 8.0, 4.0]
    assert math.isclose(totals(lines)["useful"], 12 * 4.0)


def test_a_process_that_was_killed_before_it_wrote_leaves_the_others_lines(tmp_path, clock):
    process(tmp_path, clock, first=0, last=4, step=1.0, data=0.0)
    process(tmp_path, clock, first=4, last=8, step=1.0, data=0.0, kept=False)
    with open(tmp_path / "goodput.jsonl", "a") as file:
        file.write('{"torn')
    process(tmp_path, clock, first=4, last=8, step=1.0, data=0.0)
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    assert [(line["first"], line["last"]) for line in lines] == [(0, 4), (4, 8)]


def test_real_time_adds_up_to_within_a_hundredth(tmp_path):
    before = time.monotonic()
    run = Phases()
    begun = time.monotonic()
    for name in ("data", "step", "checkpoint", "data", "step", "end"):
        run.enter(name)
        time.sleep(0.02)
    ended = time.monotonic()
    total = sum(run.seconds().values())
    assert 0.99 * (ended - begun) <= total <= 1.01 * (time.monotonic() - before)  # a machine may stand still between any two lines


def test_a_process_knows_its_age():
    first = phases.age()
    assert first > 0.1
    time.sleep(0.05)
    assert 0.03 < phases.age() - first < 5
