"""Child processes of a run. Slurm sends stop signals to every process of a step; only the run itself may react to them."""

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

# scancel and preemption; Ctrl-C; time limits; submitit; a closed terminal
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
LOOK = 0.5  # seconds between checks of the parent, where the kernel does not signal its death
ASKED = {code for number in ASKING for code in (128 + number, -number)}  # exit codes of a command that a signal stopped
UNSENT = 75  # exit code of a loader worker that cannot send its batch
SHARED = "/dev/shm"  # where torch puts batches
PARENT = "SORA_STARTED_BY"  # environment variable: the process that started a command of sora


@contextmanager
def born_deaf() -> Iterator[None]:
    """A context in which new processes start with the stop signals blocked, so that none ends them before they call `ignore_asking`.

    A blocked signal stays blocked through exec; a handler would be lost, and the signal would kill. The signals are blocked in this thread
    too, and arrive when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_asking() -> None:
    """Ignore the signals that ask a run to stop; this process ends with the run."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


@dataclass(frozen=True)
class Parent:
    """A process that starts children, which must end with it. It is passed to a child, which calls `hold_to`.

    lasting: whether the thread that starts children lives as long as the process; the kernel signals the end of that thread.
    """

    process: int
    lasting: bool

    @classmethod
    def here(cls) -> Parent:
        """The parent of children that this thread is about to start."""
        return cls(os.getpid(), threading.current_thread() is threading.main_thread())

    def hold_to(self, by: int = signal.SIGKILL) -> None:
        """Call in the child: the end of the parent sends this process the signal `by`."""
        if sys.platform == "linux" and self.lasting:
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, by)
        else:
            threading.Thread(target=self._watch, args=(by,), name="parent", daemon=True).start()
        if os.getppid() != self.process:  # the parent ended before this call
            os.kill(os.getpid(), by)

    def _watch(self, by: int) -> None:
        while os.getppid() == self.process:
            time.sleep(LOOK)
        os.kill(os.getpid(), by)


def follow_starter() -> None:
    """Send this process SIGTERM, after which a run saves, when the sora command that started it is gone. It does not apply to its
    children."""
    said = os.environ.pop(PARENT, "")
    if said:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)  # `born_deaf` blocked them
    if said == str(os.getppid()):
        Parent(int(said), True).hold_to(signal.SIGTERM)
    elif said.isdecimal() and not alive(int(said)):  # the starter ended while this process started
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal, such as Ctrl-C, asked this process or a child to stop. code: the exit code of the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def command(words: Sequence[str], *, env: Mapping[str, str] | None = None, patience: float) -> int:
    """Run a command of sora in this terminal until it ends; return its exit code.

    A signal that asks this process to stop is passed on to the command, which may save. `Interrupted` is raised after the command has
    ended, by force after `patience` seconds. If this process ends, the command gets SIGTERM.
    """
    told = {**(os.environ if env is None else env), PARENT: str(os.getpid())}
    with _handed_on() as started:
        try:
            with born_deaf():  # until it can handle signals
                # Its own process group, so that a signal from the terminal or to the group reaches it once, from this process.
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
    """A context that passes stop signals on to the process in the yielded list; the first also raises `Interrupted` here. Yields None in a
    thread that receives no signals."""
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
    """Wait for a process that saves; kill it after `patience` seconds."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def git_commit(root: Path) -> str:
    """The commit of a checkout's root folder, with "-dirty" if files differ; "" if it is no checkout, or git fails."""
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        with born_deaf():
            return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def give_memory_back() -> None:
    """Return freed memory to the system. glibc keeps its pages, and tensors of varying sizes leave more and more gaps in them."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # only glibc has it
        trim(0)


def reset_interrupt() -> None:
    """Let Ctrl-C end a process of sora without a traceback, as it ends other programs, until a command handles it.

    A process that another command of sora started was born with signals blocked; this unblocks them.
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
    """A context in which Ctrl-C raises KeyboardInterrupt, as by default, and sets `came`, because an interrupted library may raise another
    exception instead."""

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
    """Whether this process was started as a command of sora (`sora VERB`, `python -m sora.VERB`), and not as a program that calls one."""
    spec = sys.modules["__main__"].__spec__
    return (spec.name if spec is not None else Path(sys.argv[0]).name).partition(".")[0] == "sora"


def alive(process: int) -> bool:
    """Whether a process with this number runs on this machine, of any user."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # not Linux, or the process ended meanwhile
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"  # ended, but its parent has not waited for it


def ending(code: int) -> str:
    """How a worker ended and what to change, as the end of a sentence."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code in (UNSENT, -signal.SIGBUS):
        return f"{'could not hand a step over' if code == UNSENT else how}: {_shared_memory()}"
    return f"{how}: {killed_for_memory()}; fewer workers= or a smaller data.cache_mb= need less"


def _shared_memory() -> str:
    """The size and free space of /dev/shm, where workers put batches for the trainer, and how to get more."""
    more = "give it more (docker run --shm-size=16g or --ipc=host), or set fewer workers=; workers=0 needs none"
    try:
        room = os.statvfs(SHARED)
    except OSError:
        return f"{SHARED} cannot be used; {more}"
    size, left = (blocks * room.f_frsize / 1e6 for blocks in (room.f_blocks, room.f_bavail))
    return f"{SHARED} takes {size:,.0f} MB, of which {left:,.0f} are left; {more}"


def killed_for_memory() -> str:
    """How many processes the kernel killed for lack of memory, if that is known; else that a lack of memory is the usual cause."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        events = dict(line.split() for line in Path(f"/sys/fs/cgroup{group}/memory.events").read_text(encoding="utf-8").splitlines())
        times = int(events["oom_kill"])
    except (OSError, ValueError, KeyError):  # no cgroup of version 2 to read it from
        times = 0
    return f"the system has killed {times} processes of this job for want of memory" if times else "most often that is want of memory"
