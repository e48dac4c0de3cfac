"""A process that does not move any more: what it tells, and that it and its children end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sora.training.faults import watchdog
from sora.training.faults.watchdog import STALLED
from sora.training.logging.goodput import Phases

ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import ctypes, multiprocessing, sys, time
from sora.training.faults import watchdog
from sora.training.logging.goodput import Phases
watchdog.BACKSTOP = 1.0
phases = Phases()
def somewhere_deep():
    {hang}
with watchdog.Watchdog(phases, folder=sys.argv[1], rank=3, limit={limit}, start=500.0):
    phases.enter("step", 0)
    time.sleep(0.5)
    phases.enter("data", 7)  # from here on the shorter limit holds
    {before}
    phases.enter("step", 8)
    somewhere_deep()
print("not reached")
"""


def hang(tmp_path, what: str, before: str = "pass", limit: float = 1.0) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(HEAD.format(hang=what, before=before, limit=limit))
    return subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_a_hang_is_reported_with_rank_step_phase_and_stacks_and_the_process_ends(tmp_path):
    done = hang(tmp_path, "time.sleep(100)")
    assert done.returncode == STALLED
    report = (tmp_path / "stalled-3.txt").read_text()
    for told in (report, done.stderr):
        assert "rank 3 has not moved for " in told
        assert "step 8, phase step" in told
        assert "somewhere_deep" in told
    assert "stalled-3.txt" in done.stderr
    assert "not reached" not in done.stdout


@pytest.mark.slow
def test_a_hang_in_which_no_python_runs_ends_too(tmp_path):
    done = hang(tmp_path, "time.sleep(0.5); ctypes.PyDLL(None).sleep(40)")  # PyDLL keeps the interpreter's lock
    assert done.returncode != 0
    assert "somewhere_deep" in done.stderr


def test_no_timer_stays_behind_however_late_it_was_set(tmp_path, monkeypatch):
    """It would end the process, without a word of why, long after training."""
    setting, told = threading.Event(), []

    def late(*_: object, **__: object) -> None:
        setting.set()
        time.sleep(0.3)
        told.append("set")

    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", late)
    monkeypatch.setattr(watchdog.faulthandler, "cancel_dump_traceback_later", lambda: told.append("stopped"))
    with watchdog.Watchdog(Phases(), folder=tmp_path, rank=0, limit=500.0, start=500.0):
        assert setting.wait(30)
    assert told == ["set", "stopped"]


@pytest.mark.slow
def test_no_child_outlives_it(tmp_path):
    before = (
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); child.start(); print(child.pid, flush=True)"
    )
    done = hang(tmp_path, "time.sleep(100)", before)
    child = int(done.stdout.split()[0])
    end = time.monotonic() + 5
    while runs(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not runs(child)


def runs(process: int) -> bool:
    """Whether a process is there, and more than a line in the kernel's table that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_who_moves_is_left_alone_and_slow_phases_have_their_own_limit(tmp_path):
    moves = "[(phases.enter('step', 8 + i), time.sleep(0.3)) for i in range(14)]"  # a machine may stand still for seconds, too
    done = hang(tmp_path, moves, "phases.enter('evaluation'); time.sleep(4.2)", limit=4.0)
    assert done.returncode == 0, done.stderr
    assert "not reached" in done.stdout  # the end of the script, after the block
    assert not (tmp_path / "stalled-3.txt").exists()
