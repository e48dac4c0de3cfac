"""Laws of the pool of processes: what one item does to its process concerns no other item."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial

import pytest

from sora.system.guarded_pool import AHEAD, as_done, in_order
from sora.system.processes import alive

COUNT = [0]  # of this process
LIMITS = {"memory_gb": 64}


def touchy(item):
    """A good item's process, when it was computed and as which of that process's items; some crash and some hang."""
    COUNT[0] += 1
    if item % 20 == 3:
        faulthandler.disable()  # pytest's would tell of it at length
        os.kill(os.getpid(), signal.SIGSEGV)
    if item % 20 == 13:
        time.sleep(60)
    return os.getpid(), COUNT[0], time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize(("run", "many"), [(in_order, 200), (as_done, 60)])
def test_those_that_crash_or_hang_are_refused_and_every_other_is_computed_once(run, many):
    done = list(run(touchy, range(many), workers=8, seconds=0.3, **LIMITS))
    assert sorted(one.item for one in done) == list(range(many))
    assert run is as_done or [one.item for one in done] == list(range(many))
    assert {one.item for one in done if one.died} == {item for item in range(many) if item % 20 in (3, 13)}
    counts = defaultdict(list)
    for one in done:
        assert (one.result is None) == one.died == bool(one.reason)
        if one.result is not None:
            counts[one.result[0]].append(one.result[1])
    for seen in counts.values():  # a good item that was computed twice would leave a gap
        assert sorted(seen) == list(range(1, len(seen) + 1))


@pytest.mark.slow
def test_what_hangs_holds_up_no_other_process():
    start = time.monotonic()
    done = list(in_order(touchy, [13, *[0] * 40], workers=2, seconds=0.7, **LIMITS))
    at = [one.result[2] - start for one in done[1:]]
    assert done[0].died and max(at[: AHEAD * 2]) < 0.7 < 1.4 < min(at[AHEAD * 2 :])  # twice a second, while a full window waits
    done = list(as_done(touchy, [13, *[0] * 40], workers=2, seconds=0.5, **LIMITS))
    assert done[-1].died and all(one.result for one in done[:-1])


def test_no_more_is_taken_than_may_wait_and_what_is_left_is_not_taken():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    run = in_order(touchy, items(), workers=2, seconds=60, **LIMITS)
    assert next(run).item == 0 and len(taken) <= AHEAD * 2 + 2
    processes = children()
    assert 0 < len(processes) <= 2
    run.close()
    assert not any(map(alive, processes))


def children():
    """The processes of this one that began within the test: others, such as a reader's child, may be there from tests before."""
    return [number for number in _children() if number not in _before]


def _children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(word) for word in file.read().split()]


_before: set[int] = set()


@pytest.fixture(autouse=True)
def known_children():
    _before.clear()
    _before.update(_children())


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raising(item):
    if item == "odd":
        raise Odd(1, 2)
    if item == "leave":
        raise SystemExit(3)
    if item == "unpicklable":
        return lambda: None
    raise RuntimeError(item)


@pytest.mark.parametrize(
    ("item", "kind", "text"), [("plain", RuntimeError, "plain"), ("odd", RuntimeError, "1 and 2"), ("leave", SystemExit, "3")]
)
def test_errors_of_ours_are_raised_with_the_lines_where_they_arose(item, kind, text):
    with pytest.raises(kind, match=text) as raised:
        list(in_order(raising, [item], workers=1, seconds=60, **LIMITS))
    assert "in raising" in str(raised.value) + "".join(getattr(raised.value, "__notes__", ()))
    assert not children()


@pytest.mark.parametrize(("function", "item"), [(raising, "unpicklable"), (len, lambda: None), (lambda item: item, 1)])
def test_what_cannot_be_sent_is_an_error_of_ours_and_leaves_no_process(function, item):
    with pytest.raises(Exception, match="pickle|lambda"):
        list(in_order(function, [item], workers=1, seconds=60, **LIMITS))
    assert not children()


def test_a_process_that_answers_neither_result_nor_death_is_killed_from_here(monkeypatch):
    """Its own clock runs while the function does; here it is stopped whole, as by a debugger or a lock that was taken at the fork."""
    monkeypatch.setattr("sora.system.guarded_pool._LATE", 0.2)
    first, second = in_order(stopped, [True, False], workers=2, seconds=0.2, **LIMITS)
    assert first.died and second.result == "here"


def stopped(item):
    if item:
        os.kill(os.getpid(), signal.SIGSTOP)
    return "here"


def large(size, item):
    return bytes(size) + bytes([item])


def test_items_and_results_may_be_larger_than_a_pipe_holds():
    done = list(in_order(partial(large, 1 << 20), range(9), workers=3, seconds=60, **LIMITS))
    assert [one.result[-1] for one in done] == list(range(9))
    assert [one.result for one in in_order(len, [bytes(3 << 20)] * 2, workers=2, seconds=60, **LIMITS)] == [3 << 20] * 2


SERVED = """
import os, sys, time
from tests.system.test_guarded_pool import touchy, writing
from sora.system.guarded_pool import as_done, in_order

if __name__ == "__main__":
    items = [0, 3, 4]
    done = list(in_order(touchy, items, workers=2, seconds=60, memory_gb=64, start="forkserver"))
    assert [one.died for one in done] == [False, True, False] and os.getpid() not in {one.result[0] for one in done if one.result}
    assert "EACCES" in next(in_order(writing, [sys.argv[1]], workers=1, seconds=60, memory_gb=64, start="forkserver")).reason
    hung = as_done(touchy, [0, 13], workers=1, seconds=60, memory_gb=64, start="forkserver")
    print(next(hung).result[0], flush=True)
    os.kill(os.getpid(), 9)
"""


def writing(path):
    try:
        with open(path, "w"):
            return "written"
    except PermissionError:
        raise ValueError("EACCES") from None


@pytest.mark.slow
def test_processes_of_a_server_keep_the_same_laws_and_end_with_the_one_that_asked_for_them(tmp_path):
    script = tmp_path / "served.py"
    script.write_text(SERVED)
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, str(script), str(tmp_path / "wrote")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": root}, timeout=60)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    worker = int(ran.stdout)
    until = time.monotonic() + 10
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(worker) and not (tmp_path / "wrote").exists()
