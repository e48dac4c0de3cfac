"""Processes that a run starts. The signals that ask a run to stop reach every process of a Slurm step, and are the run's to answer."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# scancel and preemption; Ctrl-C; time limits; submitit; a terminal that is closed
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
LOOK = 0.5  # seconds after which a process that the kernel does not tell looks whether its parent is still there
ASKED = {code for number in ASKING for code in (128 + number, -number)}  # exit codes of a command that was asked to stop
PARENT = "SORA_STARTED_BY"  # the environment's name for the process that started a command of ours


@contextmanager
def born_deaf() -> Iterator[None]:
    """A process started inside is born with the asking signals blocked, so that none ends it before it has called `ignore_asking`.

    A blocked signal stays blocked through exec, where a handler is lost and the signal would kill. Meanwhile this thread is deaf too: what
    comes is answered when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_asking() -> None:
    """From here on this process goes on whatever asks a run to stop; it ends with the run."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


@dataclass(frozen=True)
class Parent:
    """A process that starts others, which end with it however it ends: told to a child, which calls `hold_to`.

    lasting: whether the thread that starts them lasts as long as the process. The kernel's word comes when that thread ends.
    """

    process: int
    lasting: bool

    @classmethod
    def here(cls) -> Parent:
        """Of what this thread is about to start."""
        return cls(os.getpid(), threading.current_thread() is threading.main_thread())

    def hold_to(self, by: int = signal.SIGKILL) -> None:
        """In the child: from here on the parent's end sends this process the signal `by`."""
        if sys.platform == "linux" and self.lasting:
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, by)
        else:
            threading.Thread(target=self._watch, args=(by,), name="parent", daemon=True).start()
        if os.getppid() != self.process:  # it ended before it could be held to
            os.kill(os.getpid(), by)

    def _watch(self, by: int) -> None:
        while os.getppid() == self.process:
            time.sleep(LOOK)
        os.kill(os.getpid(), by)


def follow_starter() -> None:
    """Ask for SIGTERM, after which a run saves, when the command of ours that started this one is gone. Of this process alone: what it
    starts has another parent."""
    said = os.environ.pop(PARENT, "")
    if said:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)  # it was born deaf
    if said == str(os.getppid()):
        Parent(int(said), True).hold_to(signal.SIGTERM)
    elif said.isdecimal() and not alive(int(said)):  # it went while this one was being started
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal, Ctrl-C or another, asked this process to stop, or one that it started. code: what a command ends with then."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def command(words: Sequence[str], *, env: Mapping[str, str] | None = None, patience: float) -> int:
    """Run a command of ours with this terminal as its own, to its end; its exit code.

    A signal that asks this process to stop asks that one, which may save, and `Interrupted` is raised when it has ended, within `patience`
    seconds or by force. It ends with this process, too: it is sent SIGTERM then.
    """
    told = {**(os.environ if env is None else env), PARENT: str(os.getpid())}
    with _handed_on() as started:
        try:
            with born_deaf():  # until it knows what to do with signals
                # A group of its own: what comes from the terminal, or for one or all, it gets from this process, and once.
                group = 0 if started is not None else None
                process = subprocess.Popen(words, env=told, process_group=group)
                if started is not None:
                    started.append(process)
            code = process.wait()
        except Interrupted:
            for each in started or ():
                _wait_for_end(each, patience)
            raise
    if code in ASKED:
        raise Interrupted(code - 128 if code > 0 else -code)
    return code


@contextmanager
def _handed_on() -> Iterator[list[subprocess.Popen[bytes]] | None]:
    """Asking signals to us go to the process that is put into the list; the first raises `Interrupted` here. None: no signal is heard in
    this thread."""
    came: list[int] = []
    started: list[subprocess.Popen[bytes]] = []
    if threading.current_thread() is not threading.main_thread():
        yield None
        return

    def stop(number: int, _: object) -> None:
        for process in started:
            process.send_signal(number)
        came.append(number)
        if len(came) == 1:
            raise Interrupted(number)

    heard = [each for each in ASKING if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Let it save what it has; taking too long ends it."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def git_commit(root: Path) -> str:
    """The commit that a checkout's root folder is at, with "-dirty" if files differ from it; "" where it is none, or git does not say."""
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        with born_deaf():
            return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def give_memory_back() -> None:
    """Give the system the pages of freed memory that glibc keeps: tensors of ever other sizes leave more and more between what is used."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # other libraries than glibc have none
        trim(0)


def reset_interrupt() -> None:
    """Until a command is under way, Ctrl-C ends a process of ours as it does any program: an import that is broken off is a traceback.

    What another command of ours has started was born deaf, and hears from here on.
    """
    words = sys.orig_argv[1:3]
    command = len(words) == 2 and words[0] == "-m" and words[1].partition(".")[0] == "sora"
    command = command or bool(sys.argv and Path(sys.argv[0]).name == "sora")
    if not command or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if PARENT in os.environ:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


class Interrupts:
    """A context in which Ctrl-C raises KeyboardInterrupt, as Python's own handler does, and leaves a note: a library that was broken off
    may raise something else for it."""

    def __init__(self) -> None:
        self.came = False
        self._before: Callable[..., object] | int | None = None
        self._taken = False

    def __enter__(self) -> Interrupts:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and before in (signal.default_int_handler, signal.SIG_DFL):
            self._before, self._taken = before, True
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: object) -> None:
        self.came = True
        raise KeyboardInterrupt


def own() -> bool:
    """Whether this process was started for a command of ours (`sora VERB`, `python -m sora.VERB`), not for what calls one, as tests do."""
    spec = sys.modules["__main__"].__spec__
    return (spec.name if spec is not None else Path(sys.argv[0]).name).partition(".")[0] == "sora"


def alive(process: int) -> bool:
    """Whether a process of this number is at work on this machine, whoever's it is."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no Linux, or it went meanwhile
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"  # it has ended, and whoever started it has not looked
