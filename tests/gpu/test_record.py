"""A check that is cut off at any moment has told what it knew: whole files, statuses that are true, everything found before."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.gpu.fitting import fitting
from tests.gpu.processes import Failed, forked
from tests.gpu.record import CUT, FAILED, NOT_RUN, RAN, RUNNING, Cut, Place, Record, Report, Section, run

PLACE = Place("cpu", True, Path("."))
ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds that pass only when a section says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def sections(clock, *, each=20.0, count=4, reports=5):
    def made(number):
        def check(place):
            for report in range(reports):
                clock.now += each / reports
                yield Report(figures={f"figure_{report}": number + report / 10})

        return Section(f"part{number}", check, seconds=60)

    return [made(number) for number in range(count)]


def inline(clock, cut_after=None):
    """Runs a section here, with the same law for its clock; after so many reports whoever runs it is stopped."""
    seen = [0]

    def runner(section, place, *, seconds):
        end = clock() + seconds
        for report in section.check(place):
            if clock() > end:
                raise Cut
            if seen[0] == cut_after:
                raise KeyboardInterrupt
            seen[0] += 1
            yield report

    return runner


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("cut_after", range(20))
def test_a_cut_off_run_leaves_a_whole_file_with_all_that_was_found(tmp_path, cut_after):
    clock = Clock()
    parts = sections(clock)
    record = Record(tmp_path / "gpu.json", about={"device": "fake"}, sections=parts, echo=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        run(parts, PLACE, record, minutes=100, runner=inline(clock, cut_after), clock=clock)
    found = read(tmp_path / "gpu.json")
    whole, rest = divmod(cut_after, 5)
    assert found["figures"] == {f"part{n}_figure_{r}": n + r / 10 for n in range(4) for r in range(5) if n * 5 + r < cut_after}
    wanted = [RAN] * whole + [RUNNING] + [NOT_RUN] * (3 - whole)
    assert [entry["status"] for entry in found["sections"].values()] == wanted
    assert len((tmp_path / "gpu.log").read_text().splitlines()) == cut_after + 2 * whole + 1, rest


@pytest.mark.parametrize(("minutes", "statuses"), [(8, [RAN] * 4), (1, [RAN, RAN, RAN, NOT_RUN]), (0.5, [RAN, CUT, NOT_RUN, NOT_RUN])])
def test_the_whole_clock_decides_how_many_sections_run(tmp_path, minutes, statuses):
    clock = Clock()
    parts = sections(clock)
    record = Record(tmp_path / "gpu.json", about={}, sections=parts, echo=lambda _: None)
    run(parts, PLACE, record, minutes=minutes, runner=inline(clock), clock=clock)
    found = read(tmp_path / "gpu.json")["sections"]
    assert [entry["status"] for entry in found.values()] == statuses
    assert all(entry["why"] for entry in found.values() if entry["status"] != RAN)


def test_a_failure_and_a_need_are_recorded_and_passed_over(tmp_path):
    def broken(place):
        yield Report(figures={"before": 1.0})
        raise RuntimeError("an illegal memory access")

    def fine(place):
        yield Report(figures={"figure": 2.0}, note="well")

    parts = [Section("broken", broken, 60), Section("needy", fine, 60, 0, lambda _: "diffusers is not here"), Section("fine", fine, 60)]
    record = Record(tmp_path / "gpu.json", about={}, sections=parts, echo=lambda _: None)
    run(parts, PLACE, record, minutes=8, runner=forked)
    found = read(tmp_path / "gpu.json")
    assert {name: entry["status"] for name, entry in found["sections"].items()} == {"broken": FAILED, "needy": NOT_RUN, "fine": RAN}
    assert "an illegal memory access" in found["sections"]["broken"]["why"]
    assert found["sections"]["needy"]["why"] == "diffusers is not here"
    assert found["figures"] == {"broken_before": 1.0, "fine_figure": 2.0}


def test_a_device_of_too_little_memory_runs_the_sections_that_fit(tmp_path):
    def fine(place):
        yield Report(figures={"figure": 2.0})

    parts = [Section("large", fine, 60, 40.0), Section("small", fine, 60, 16.0)]
    record = Record(tmp_path / "gpu.json", about={}, sections=parts, echo=lambda _: None)
    run(parts, Place("cuda", False, tmp_path, 24.0), record, minutes=8, runner=lambda section, place, seconds: section.check(place))
    found = read(tmp_path / "gpu.json")["sections"]
    assert [entry["status"] for entry in found.values()] == [NOT_RUN, RAN]
    assert found["large"]["why"] == "it needs 40 GiB of memory on the device, which has 24"


def test_sections_that_are_not_asked_for_keep_what_an_earlier_run_found(tmp_path):
    clock = Clock()
    parts = sections(clock, count=2)
    whole = Record(tmp_path / "gpu.json", about={}, sections=parts, echo=lambda _: None)
    run(parts, PLACE, whole, minutes=8, runner=inline(clock), clock=clock)
    again = Record(tmp_path / "gpu.json", about={}, sections=parts, keep=True, echo=lambda _: None)
    run(sections(clock, count=1, reports=2), PLACE, again, minutes=8, runner=inline(clock), clock=clock)
    found = read(tmp_path / "gpu.json")
    assert sorted(found["figures"]) == [f"part0_figure_{r}" for r in range(2)] + [f"part1_figure_{r}" for r in range(5)]


def test_where_memory_does_not_suffice_smaller_sizes_are_tried_and_it_is_told_which_fit(tmp_path):
    def work(size, most):
        if size > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return {"ms": float(size)}

    def check(place, most):
        sizes = {f"{size} tokens": partial(work, size, most) for size in (16, 8, 4)}
        yield Report(figures=(yield from fitting("a step", sizes)) or {})

    found = {}
    for most in (16, 8, 1):
        part = [Section("speed", partial(check, most=most), 60)]
        record = Record(tmp_path / "gpu.json", about={}, sections=part, echo=lambda _: None)
        run(part, PLACE, record, minutes=8, runner=lambda section, place, seconds: section.check(place))
        said = read(tmp_path / "gpu.json")
        rows = said["sections"]["speed"]["rows"]
        found[most] = said["figures"], [(row["size"], row["fits"]) for row in rows], said["sections"]["speed"]["status"]
    assert found[16] == ({"speed_ms": 16.0}, [("16 tokens", True)], RAN)
    assert found[8] == ({"speed_ms": 8.0}, [("16 tokens", False), ("8 tokens", True)], RAN)
    assert found[1] == ({}, [("16 tokens", False), ("8 tokens", False), ("4 tokens", False), ("any of these", False)], RAN)
    with pytest.raises(RuntimeError, match="illegal"):
        list(fitting("a step", {"1": lambda: (_ for _ in ()).throw(RuntimeError("an illegal memory access"))}))


def hangs(place):
    yield Report(figures={"before": 1.0}, note=str(os.getpid()))
    if os.fork() == 0:
        time.sleep(600)  # a child that hangs, too
    time.sleep(600)


def dies(place):
    yield Report(figures={"before": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = """
import os, sys
from pathlib import Path
from tests.gpu.processes import forked
from tests.gpu.record import Place, Record, Report, Section, run

def hangs(place):
    for number in range(10**6):
        yield Report(figures={f"figure_{number % 50}": float(number)})
        if number == 20:
            yield Report(row={"section": os.getpid()})

folder = Path(sys.argv[1])
parts = [Section("hangs", hangs, 60)]
run(parts, Place("cpu", True, folder), Record(folder / "gpu.json", about={}, sections=parts), minutes=8, runner=forked)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.011, 0.05, 0.13])
def test_a_check_that_is_killed_leaves_a_whole_file_and_no_process(tmp_path, seconds):
    """However it is killed, and in the middle of a write: what it had begun would hold the device for the next one."""
    check = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.DEVNULL, cwd=ROOT)
    path = tmp_path / "gpu.json"
    waited(lambda: path.exists() and read(path)["sections"]["hangs"]["rows"])
    section = read(path)["sections"]["hangs"]["rows"][0]["section"]
    assert running(section)
    time.sleep(seconds)
    check.kill()
    check.wait()
    found = read(path)
    assert found["sections"]["hangs"]["status"] == RUNNING and len(found["figures"]) >= 20
    waited(lambda: not running(section))


def waited(holds, patience=60.0):
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_only_adds_to_a_file_of_the_same_device_and_to_nothing_else(tmp_path):
    path = tmp_path / "gpu.json"
    parts = sections(Clock(), count=1)
    about = {"device": "a GPU", "versions": {"torch": "2.11"}, "commit": "a", "when": "then"}
    record = Record(path, about=about, sections=parts, echo=lambda _: None)
    record.add("part0", Report(figures={"figure": 1.0}))
    record.mark("part0", RAN)
    later = Record(path, about={**about, "commit": "b", "when": "now"}, sections=parts, keep=True, echo=lambda _: None)
    assert later.data["sections"]["part0"]["commit"] == "a" and later.data["commit"] == "b"
    assert "part0: ran" in path.with_suffix(".log").read_text()
    whole = path.read_bytes()
    for other, told in (({"device": "another"}, "of another device, a GPU"), ({"versions": {"torch": "2.12"}}, "of another version")):
        with pytest.raises(ValueError, match=told):
            Record(path, about={**about, **other}, sections=parts, keep=True)
        assert path.read_bytes() == whole
    for broken in ("", "[]", "{}", '{"figures": 1, "sections": {}, "device": "a GPU", "versions": {"torch": "2.11"}}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match="no record of an earlier check"):
            Record(path, about=about, sections=parts, keep=True)


def running(group):
    """Processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(of) == group and state != "Z":
            found.append(path.parent.name)
    return found


def test_a_section_that_hangs_is_cut_off_with_its_children_and_one_that_dies_is_told():
    found = []
    with pytest.raises(Cut):
        found.extend(forked(Section("hangs", hangs, 60), PLACE, seconds=1.0))
    group = int(found[0].note)
    time.sleep(0.2)
    assert not running(group)
    with pytest.raises(Failed, match="-9"):
        list(forked(Section("dies", dies, 60), PLACE, seconds=20.0))
