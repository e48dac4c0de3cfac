"""Handles signals that ask a run to stop: the current step is finished and saved, and the exit code names the signal.

Before training has begun there is nothing to save, and a signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread, current_thread, main_thread
from types import FrameType

from sora.system.processes import ASKING, Parent, own
from sora.training.faults.watchdog import kill_children


class StopFlag:
    """A context in which stop signals set a flag. Further signals change nothing, except that a third Ctrl-C ends the run without saving,
    after a save that has begun. SIGHUP stays ignored if it was (nohup).

    received: the first signal, or the argument of `ask`. unsaved: whether Ctrl-C asked not to wait for the step and its save.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.unsaved = False
        self._interrupts = self._sheltering = 0
        self._before: dict[int, object] = {}
        self._owner = 0
        self._at_once: AtOnce | None = None

    def __enter__(self) -> StopFlag:
        self._owner = os.getpid()
        follow_launcher()
        for number in ASKING:
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                self._before[number] = signal.getsignal(number)
        self._take()
        self._at_once = AtOnce()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_at_once_no_more()
        for number, handler in self._before.items():
            over = signal.SIG_IGN if self and own() else handler  # all is saved, and this process is about to end
            signal.signal(number, over)  # pyright: ignore[reportArgumentType]

    def install(self) -> None:
        """Set the handlers again when training begins, because Lightning sets its own, which save nothing."""
        self._take()
        self._end_at_once_no_more()

    def ask(self, number: int) -> None:
        """Stop as if this signal had come; for requests that reach this process in another way."""
        self.received = self.received or number

    @contextmanager
    def sheltered(self) -> Iterator[None]:
        """A context for a save: a third Ctrl-C waits for its end."""
        self._sheltering += 1
        try:
            yield
        finally:
            self._sheltering -= 1

    def heed(self) -> None:
        """Call after a save: end the run if Ctrl-C asked for it meanwhile."""
        if self.unsaved and not self._sheltering:
            raise KeyboardInterrupt

    def _take(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _end_at_once_no_more(self) -> None:
        if self._at_once is not None:
            self._at_once.over()
            self._at_once = None

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """The exit code, as in a shell: 130 after Ctrl-C, 143 after SIGTERM; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked loader worker: the trainer decides, and closes it
            return
        if self._at_once is not None:
            end(number)
        first, self.received = self.received is None, self.received or number
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 3:
                self.unsaved = True
                if not self._sheltering:
                    raise KeyboardInterrupt
                tell("SIGINT: a checkpoint is being written and will be whole in a moment; then the run stops")
        if first:
            tell(f"{signal.Signals(number).name}: finishing this step and saving; then the run stops (Ctrl-C three times to stop unsaved)")


def tell(text: str) -> None:
    """Print one line from a signal handler, without print, whose lock the interrupted code may hold. Errors of a closed terminal are
    ignored, so that they do not end a step."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class AtOnce:
    """Until `over` is called, a stop signal ends the process at once, even inside a library that waits for ranks, where no Python handler
    runs. The interpreter also writes the signal's number to a pipe, which a thread reads."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(before=self._fork, after_in_parent=self._forked, after_in_child=self._born)
        Thread(target=self._wait, name="signals", daemon=True).start()

    def over(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)
        self._writing = -1

    # Nothing is written to the pipe during a fork, because the child's signals are its own from its start.

    def _fork(self) -> None:
        if self._writing >= 0 and current_thread() is main_thread():
            signal.set_wakeup_fd(-1)

    def _forked(self) -> None:
        if self._writing >= 0 and current_thread() is main_thread():
            signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def _born(self) -> None:
        if self._writing >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writing)
            self._writing = -1

    def _wait(self) -> None:
        while received := os.read(self._reading, 64):
            for number in set(received) & {int(each) for each in ASKING}:
                end(number)
        os.close(self._reading)


def end(number: int) -> None:
    """End this process, which has nothing to save."""
    tell(f"{signal.Signals(number).name}: nothing has been trained yet, so nothing is saved; the run stops")
    kill_children()
    os._exit(128 + number)


def follow_launcher() -> None:
    """Ask for SIGTERM when torchrun is gone: its ranks would train on, and nobody would restart or end them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        Parent(os.getppid(), True).hold_to(signal.SIGTERM)
