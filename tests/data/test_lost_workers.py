"""A loader worker that dies: every step is delivered all the same, and nothing is raised in the middle of one."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sora.data.loading.loader import step_loader

pytestmark = pytest.mark.slow


class Steps:
    """Tells which process made a step; the first worker that comes to step `deadly` dies of `how`."""

    def __init__(self, deadly=None, how=None):
        self.deadly, self.how, self.main = deadly, how, os.getpid()

    def __getitem__(self, step):
        if step == self.deadly and os.getpid() != self.main:
            self.how()
        return step, os.getpid()

    def share(self, step, *, ranks, rank):
        return self[step]


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "told"), [(killed, "was killed by SIGKILL"), (lambda: os._exit(3), "ended with exit code 3")], ids=["killed", "exited"]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_step_is_delivered_and_the_death_is_told_once_with_what_to_do(workers, how, told):
    said = []
    loader = step_loader(Steps(4, how), first=1, last=9, workers=workers, lost=said.append)
    got = list(loader)
    assert [step for step, _ in got] == list(range(1, 9))
    assert {process for step, process in got if step >= 5} == {os.getpid()}
    (line,) = said
    assert told in line and f"loader worker {(4 - 1) % workers} (process " in line
    assert "memory" in line and "workers=" in line and "data.cache_mb=" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_what_may_be_done_ahead_is_done_once_by_workers_or_whoever_stands_in_for_them(workers):
    """Also to the steps after a worker's death; without workers nobody trains meanwhile, and it is left to who prepares."""
    ahead = lambda step: (*step, os.getpid())  # noqa: E731
    got = list(step_loader(Steps(4, killed), first=1, last=9, workers=workers, lost=lambda _: None, ahead=ahead))
    assert [step for step, *_ in got] == list(range(1, 9))
    for step, *makers in got:
        assert len(set(makers)) == 1 and len(makers) == 1 + workers
        assert step in (2, 3, 4) or (makers[0] == os.getpid()) == (not workers or step >= 5)  # which one was lost on its way depends


class Large:
    """Steps of a megabyte and more."""

    def __getitem__(self, step):
        return torch.full((300_000,), float(step))

    def share(self, step, *, ranks, rank):
        return self[step]


def test_a_step_that_does_not_fit_into_shared_memory_is_loaded_here_and_told_with_what_to_change(monkeypatch):
    """It was a traceback in the worker, ten minutes of silence, and an end with nothing saved."""
    plain = torch.UntypedStorage._share_fd_cpu_

    def full(storage, *args, **settings):
        if float(torch.tensor([], dtype=torch.float32).set_(storage)[0]) == 3.0:
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
        return plain(storage, *args, **settings)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    said, began = [], time.monotonic()
    got = [float(step[0]) for step in step_loader(Large(), first=0, last=6, workers=1, lost=said.append)]
    assert got == [0, 1, 2, 3, 4, 5] and time.monotonic() - began < 60
    (line,) = said
    assert "loader worker 0 (process " in line and "could not hand a step over: /dev/shm takes " in line
    assert "--shm-size" in line and "workers=0" in line


def test_a_step_that_cannot_be_taken_over_for_want_of_open_files_is_loaded_here_and_told():
    said, soft = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    held, got = [], []
    try:
        for step in step_loader(Large(), first=0, last=6, workers=1, lost=said.append):
            got.append(step)  # whose memory is a file that is open
            if len(got) == 2:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, soft[1]))
                with pytest.raises(OSError, match="Too many"):
                    while True:
                        held.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)
        for handle in held:
            os.close(handle)
    assert [float(step[0]) for step in got] == [0, 1, 2, 3, 4, 5]
    (line,) = said
    assert "could not be taken over" in line and "ulimit -n" in line


def test_nothing_is_raised_while_a_step_is_trained_on():
    """torch raises in the handler of SIGCHLD, wherever the process is: weights would be half updated."""
    said = []
    loader = iter(step_loader(Steps(), first=0, last=6, workers=1, lost=said.append))
    next(loader)
    os.kill(loader._workers[0].pid, signal.SIGKILL)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # a step, in which signals are handled
        sum(range(1000))
    assert not said
    assert [step for step, _ in loader] == [1, 2, 3, 4, 5] and len(said) == 1


def test_an_error_in_a_worker_that_lives_is_that_error():
    def wrong():
        raise ValueError("a clip of ours")

    said = []
    with pytest.raises(ValueError, match="a clip of ours"):
        list(step_loader(Steps(2, wrong), first=0, last=5, workers=1, lost=said.append))
    assert not said


def test_who_does_not_ask_to_be_told_gets_an_error():
    with pytest.raises((RuntimeError, OSError)):
        list(step_loader(Steps(1, killed), first=0, last=5, workers=1))


def test_workers_are_gone_with_whoever_asked_for_steps_even_if_not_for_the_end():
    """Lightning counts the steps and asks for no more than there are."""
    loader = step_loader(Steps(), first=0, last=3, workers=2, lost=print)
    steps = iter(loader)
    assert [next(steps)[0] for _ in range(3)] == [0, 1, 2]
    workers = [worker.pid for worker in steps._workers]
    gc.disable()  # not only when garbage is looked for, which may be never
    try:
        del steps
        end = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        gc.enable()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


class Private:
    """Looks for garbage, as any process does now and then; gives how much memory is this process's alone, in kB."""

    def __getitem__(self, step):
        gc.collect()
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))

    def share(self, step, *, ranks, rank):
        return self[step]


def test_looking_for_garbage_takes_no_copy_of_what_workers_share_with_their_parent():
    """Every object that is looked through is written to."""
    held = [[] for _ in range(500_000)]  # 40 MB and more that the workers share, in half of the memory that holds it all
    gc.unfreeze()  # what pytest has collected
    before = gc.get_freeze_count()
    steps = iter(step_loader(Private(), first=0, last=3, workers=1))
    gc.collect()
    grown = max(steps)
    assert len(held) == 500_000 and grown < 30_000
    del steps
    assert gc.get_freeze_count() == before  # what became garbage meanwhile is found again


@pytest.mark.parametrize("started", [0, 1])
def test_a_start_that_fails_leaves_no_worker_and_shares_nothing(monkeypatch, started):
    """As where no more processes may be made: what came of it is gone, and the next iterator's end lets go of all."""
    before, made, process = gc.get_freeze_count(), [], multiprocessing.Process

    def starting(self):
        if len(made) == started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(self)
        start(self)

    start = process.start
    with monkeypatch.context() as patched:
        patched.setattr(process, "start", starting)
        with pytest.raises(BlockingIOError):
            iter(step_loader(Steps(), first=0, last=3, workers=2))
    assert len(made) == started and gc.get_freeze_count() == before
    for worker in made:
        worker.join(20)
        assert not worker.is_alive()
    assert [step for step, *_ in step_loader(Steps(), first=0, last=3, workers=1)] == [0, 1, 2]
    gc.collect()
    assert gc.get_freeze_count() == before


SLOW = """
import time
from sora.system.guarded_pool import in_order

def slow(item):
    time.sleep(4)
    return item

print("begun", flush=True)
try:
    list(in_order(slow, range(40), workers=2, seconds=60, memory_gb=64, apart=False))
except KeyboardInterrupt:
    raise SystemExit(130) from None
"""


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3])
def test_however_often_ctrl_c_is_pressed_nothing_waits_for_what_is_under_way(times):
    """The second one took the wait for processes for done, and the interpreter waited for them at its end, for ever."""
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=hearing) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        time.sleep(1)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        try:
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (130, -signal.SIGINT, 1)


def hearing() -> None:
    """A command that a shell starts in the background hears no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
