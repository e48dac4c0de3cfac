"""Laws of the pool of processes: what one item does to its process concerns no other item."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial

import numpy as np
import pytest

from sora.system.guarded_pool import AHEAD, GuardedPool, Hold, in_order
from sora.system.processes import alive

COUNT = [0]  # of this process
LIMITS = {"memory_gb": 64}


def as_done(function, items, *, workers, **limits):
    with GuardedPool(workers, Hold(**limits)) as pool:
        yield from pool.as_done(function, items)


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
    assert done[0].died and max(at[: AHEAD * 2]) < 0.7 < min(at[AHEAD * 2 :])  # once its time is up, for which a full window waits
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


def tried(path, item):
    """Notes each try, and comes to the end that the item is called after."""
    with open(path, "a") as file:
        file.write(f"{item}\n")
    if item == "crash":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "memory":
        bytearray(1 << 50)
    if item == "clock":
        time.sleep(60)
    if item == "bad":
        raise ValueError("bad it is")
    return item


def test_what_may_not_have_been_its_fault_is_tried_once_more_and_what_used_up_its_time_is_not(tmp_path):
    items = ["fine", "clock", "crash", "memory", "bad", "good"]
    done = list(in_order(partial(tried, tmp_path / "tries"), items, workers=2, seconds=0.5, apart=False, **LIMITS))
    tries = (tmp_path / "tries").read_text().split()
    assert {item: tries.count(item) for item in items} == {"fine": 1, "clock": 1, "crash": 2, "memory": 2, "bad": 1, "good": 1}
    reasons = ["", "it took over 0.5 seconds", "the process that read it crashed, twice", "it needs more memory than a process may take"]
    assert [one.reason for one in done] == [*reasons, "bad it is", ""]
    assert [one.died for one in done] == [False, True, True, True, False, False]


HOARD = []


def hoarding(item):
    """Takes memory and never gives it back."""
    HOARD.append(np.empty(3 << 30, np.uint8))
    return os.getpid()


def test_what_other_items_took_is_not_held_against_one():
    with open("/proc/self/statm") as file:  # a process has this one's memory, and room for one item
        mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    one, two, three = in_order(hoarding, range(3), workers=1, seconds=60, memory_gb=mapped + 4.5)
    assert len({one.result, two.result, three.result}) == 3 and one.result


def test_processes_are_there_for_the_next_function_and_a_broken_off_call_leaves_nothing_behind():
    with GuardedPool(2, Hold(seconds=60, **LIMITS)) as pool:
        first = {one.result[0] for one in pool.as_done(touchy, [0] * 8)}
        second = [one.result for one in pool.in_order(whose, range(8))]
        assert {process for process, _ in second} <= first and [item for _, item in second] == list(range(8))
        run = pool.as_done(touchy, [0, 0, 0, 13])
        assert next(run).item == 0
        run.close()
        assert [one.result[1] for one in pool.in_order(whose, range(5))] == list(range(5))
        processes = children()
    assert processes and not any(map(alive, processes))


def whose(item):
    return os.getpid(), item


@pytest.mark.slow
def test_the_next_item_is_taken_while_the_one_before_is_computed():
    taken = {}

    def items():
        for item in range(4):
            taken[item] = time.monotonic()
            yield item

    ended = {one.item: one.result for one in as_done(ending_at, items(), workers=1, seconds=60, **LIMITS)}
    assert all(taken[item + 1] < ended[item] for item in range(3))


def ending_at(item):
    time.sleep(0.3)
    return time.monotonic()


SERVED = """
import os, sys, time
from tests.system.test_guarded_pool import touchy, writing
from sora.system.guarded_pool import GuardedPool, Hold, in_order

if __name__ == "__main__":
    items = [0, 3, 4]
    done = list(in_order(touchy, items, workers=2, seconds=60, memory_gb=64, start="forkserver"))
    assert [one.died for one in done] == [False, True, False] and os.getpid() not in {one.result[0] for one in done if one.result}
    assert "EACCES" in next(in_order(writing, [sys.argv[1]], workers=1, seconds=60, memory_gb=64, start="forkserver")).reason
    hung = GuardedPool(1, Hold(seconds=60, memory_gb=64), start="forkserver").as_done(touchy, [0, 13])
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
