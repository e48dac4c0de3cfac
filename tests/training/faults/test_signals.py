"""A signal before training ends the process at once, wherever it waits; afterwards it only sets a flag."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from sora.system.processes import ASKING
from sora.training.faults import signals
from sora.training.faults.signals import StopFlag
from tests.faults import in_child

LONG = 60.0  # seconds that nobody here waits unless something is broken


def asked(work: Callable[[], None], *, number: int, ready: socket.socket) -> tuple[int, float]:
    """The status of a child that does `work` and is sent a signal when it says that it is there, and the seconds it took to end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    ready.settimeout(LONG)  # a child that ended before would be waited for in vain
    ready.accept()
    time.sleep(0.2)  # it waits now
    began = time.monotonic()
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - began


@pytest.mark.parametrize("number", ASKING)
def test_a_rank_that_waits_for_others_before_the_first_step_ends_at_once_and_says_so(number, capfd):
    """It connects to a store that says nothing, in C++; no handler written in Python runs there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        def work() -> None:
            with StopFlag():
                dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=LONG))

        code, took = asked(work, number=number, ready=silent)
    assert code == 128 + number and took < LONG / 2
    assert f"{number.name}: nothing has been trained yet, so nothing is saved" in capfd.readouterr().err


def test_once_training_has_begun_signals_of_any_number_only_set_the_flag(capfd):
    def work() -> None:
        with StopFlag() as flag:
            flag.install()
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            assert flag and flag.exit_code == 128 + signal.SIGUSR1

    assert in_child(work) == 0
    assert capfd.readouterr().err.count("finishing this step and saving") == 1


@pytest.mark.parametrize("begun", [False, True])
def test_the_signals_of_a_forked_child_are_not_its_parents(begun):
    def work() -> None:
        with StopFlag() as flag:
            if begun:
                flag.install()
            child = os.fork()
            if child == 0:
                time.sleep(0.3)
                os._exit(5)
            os.kill(child, signal.SIGTERM)  # as multiprocessing ends its workers
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
            time.sleep(0.2)
            assert not flag

    assert in_child(work) == 0


def test_nothing_stays_behind():
    handlers = [signal.getsignal(number) for number in ASKING]
    before = len(os.listdir("/proc/self/fd"))
    for begun in (False, True):
        with StopFlag() as flag:
            assert signal.getsignal(signal.SIGTERM) != handlers[0]
            if begun:
                flag.install()
    assert [signal.getsignal(number) for number in ASKING] == handlers
    end = time.monotonic() + LONG
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end:  # the threads close their ends
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_third_ctrl_c_ends_the_run_at_once_but_not_a_save_that_has_begun(capfd):
    def work() -> None:
        with StopFlag() as flag:
            flag.install()
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            assert flag and not flag.unsaved
            with flag.sheltered():
                signal.raise_signal(signal.SIGINT)
                flag.heed()  # within another save
                for number in (*ASKING, signal.SIGINT, signal.SIGINT):
                    signal.raise_signal(number)
            assert flag.unsaved and flag.exit_code == 130
            with pytest.raises(KeyboardInterrupt):
                flag.heed()
        with StopFlag() as flag:
            flag.install()
            with pytest.raises(KeyboardInterrupt):
                for _ in range(3):
                    signal.raise_signal(signal.SIGINT)

    assert in_child(work) == 0
    told = capfd.readouterr().err
    assert told.count("finishing this step and saving") == 2 and told.count("will be whole in a moment") == 1


def test_a_terminal_that_closes_asks_unless_nohup_has_it_ignored(monkeypatch):
    def work() -> None:
        for ignored in (False, True):
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            with StopFlag() as flag:
                flag.install()
                signal.raise_signal(signal.SIGHUP)
                assert bool(flag) != ignored
                assert flag.exit_code == (0 if ignored else 128 + signal.SIGHUP)

    assert in_child(work) == 0


def test_between_a_save_and_the_end_of_the_process_a_signal_is_harmless(monkeypatch):
    def work() -> None:
        monkeypatch.setattr(signals, "own", lambda: True)
        with StopFlag() as flag:
            flag.install()
            signal.raise_signal(signal.SIGUSR1)
        for number in ASKING:
            signal.raise_signal(number)

    assert in_child(work) == 0


def test_what_is_no_signal_can_ask_too():
    with StopFlag() as flag:
        flag.ask(signal.SIGKILL)
        flag.ask(signal.SIGTERM)
        assert flag.exit_code == 137
