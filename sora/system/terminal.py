"""Printing on whatever terminal, log file or pipe there is: what it cannot write is written in letters that it can, what would steer it is
written as escapes, and no credential is written.

Names of files, keys, captions and prompts may be a stranger's: an escape sequence in one moves the cursor, renames the window, or writes
over the line before; a bidirectional override shows a name backwards. All that this process prints goes through a `Door`. Bars, which
steer the terminal themselves, are made by `bars`, whose texts go through `line`.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sora.gate.credentials import masked

if TYPE_CHECKING:
    from rich.progress import Progress

# Of what our own pages and plots hold; anything else, such as a file's name, is told by its code, so that it can be told from others.
PLAIN = dict.fromkeys("▁▂▃▄▅▆▇█▉▊▋▌", "#") | {"▍": "|", "▎": "|", "▏": "|", "–": "-", "—": "-", "…": "...", "·": "*", "×": "x"}
PLAIN |= {"±": "+-", "→": "->", "≤": "<=", "≥": ">=", "²": "^2", "“": '"', "”": '"', "‘": "'", "’": "'", "μ": "u", "µ": "u", "━": "-"}
NAME = "sora.plain"
# Control characters of both sets but tab and line feed, other line ends, and what overrides the direction of text.
STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
EVERY = 15.0  # seconds between lines where there is no terminal
Told = Callable[[int, int], None]
STYLE = re.compile(r"\033\[[01]m")  # bold, and its end: of the pages of --help


class Lines(ValueError):
    """A user's mistake that is told in several lines."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """How many of something there are, for people: "1 clip", "3 clips". one, many: what they are called, with the verb where one follows
    ("clip has", "clips have"); many is one with an s where it is not given."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


class Lasting:
    """A stream that, from `outlive` on, is let go when it can take no more: a terminal that was closed, a pipe whose reader has left, a log
    on a full disk. What is said then goes nowhere."""

    outlived = False

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._kept():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self.stream.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not Lasting.outlived:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # also for what libraries write, and for what it still holds
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlive(whether: bool) -> None:
    """From here on the work goes on when nobody can be told of it any more, or does not."""
    Lasting.outlived = whether


class Door:
    """A stream that writes nothing of strangers which would steer a terminal, and no credentials. rich_proxied_file: the stream itself, by
    the name under which rich looks for it."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(shown(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def shown(text: str) -> str:
    """A text of one line or several as it may be printed: escapes for what steers a terminal, *** for credentials."""
    return STEERING.sub(_escape, masked(text))


def line(text: str) -> str:
    """The same as one line: its line ends are written as escapes, too."""
    return shown(text).replace("\n", "\\n")


def say(*lines: str) -> None:
    """Print lines that hold words of strangers: each stays one line."""
    print("\n".join(map(line, lines)))


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def plainly(error: UnicodeError) -> tuple[str, int]:
    """The error handler of an encoding that has not every letter."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter) or ascii(letter)[1:-1] for letter in error.object[error.start : error.end]), error.end


def in_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode where its words and names of files are read as ASCII, in which a dataset cannot be
    named or read that has other letters: LC_ALL=C with PYTHONUTF8=0 or PYTHONCOERCECLOCALE=0, as some clusters set them."""
    mode = ["-X", "utf8"]  # the first one counts
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.orig_argv[1:3] != mode:
        os.execve(sys.executable, [sys.executable, *mode, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def writable() -> None:
    """From here on nothing that this process prints fails for its terminal's encoding, or steers the terminal.

    Where it was started without a stream, what is said there goes nowhere.
    """
    codecs.register_error(NAME, plainly)
    _open_standard()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", line_buffering=True)
        if isinstance(stream, io.TextIOWrapper) and stream.errors != NAME:
            stream.reconfigure(errors=NAME)
        if not isinstance(stream, Door):
            setattr(sys, name, Door(Lasting(stream)))


def _open_standard() -> None:
    """Give the numbers of standard input, output and errors to nowhere if they are not open: the next file to be opened, a checkpoint,
    would have them, and what a handler of signals or a library says would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(taken, True)
            assert taken == number


def styled(text: str) -> None:
    """Print a page of ours, whose bold headings are meant."""
    stream = raw(sys.stdout)
    stream.write("".join(part if STYLE.fullmatch(part) else shown(part) for part in re.split(f"({STYLE.pattern})", text)) + "\n")


def raw(stream: Any) -> Any:
    """What a door leads to."""
    return stream.rich_proxied_file if isinstance(stream, Door) else stream


@contextmanager
def steered() -> Iterator[None]:
    """Let a library write its own bars to stderr."""
    before, sys.stderr = sys.stderr, raw(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = before


@contextmanager
def bars(*columns: Any, stderr: bool = True, **settings: Any) -> Iterator[Progress]:
    """Bars of rich. What is printed meanwhile stands above them, and goes through a door as before; texts of tasks are the caller's, see
    `line`."""
    from rich.console import Console
    from rich.progress import Progress

    before = sys.stdout, sys.stderr
    with Progress(*columns, console=Console(file=raw(sys.stderr if stderr else sys.stdout)), **settings) as made:
        redirected = sys.stdout, sys.stderr
        for name, old, new in zip(("stdout", "stderr"), before, redirected, strict=True):
            if new is not old:
                setattr(sys, name, Door(new))
        try:
            yield made
        finally:
            sys.stdout, sys.stderr = redirected


@contextmanager
def progress_bar(what: str, unit: str = "") -> Iterator[Told]:
    """Show how much is done, how fast, and the time left; gives a function of (done, total). unit: one of what is counted, as in "clip"."""
    if sys.stderr.isatty():
        with _bar(what, unit) as bar:
            yield bar
        return
    began = last = time.monotonic()
    shown = (0, 0)

    def line(done: int, total: int) -> None:
        nonlocal last, shown
        shown, now = (done, total), time.monotonic()
        if now - last >= EVERY:
            last = now
            print(f"{what}: {_counted(done, total, unit, now - began)}", file=sys.stderr, flush=True)

    yield line
    if shown[1]:
        done = counted(shown[0], unit, f"{unit}s") if unit else str(shown[0])
        print(f"{what}: {done} in {_minutes(time.monotonic() - began)}", file=sys.stderr, flush=True)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Told]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with bars(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        task, began = bar.add_task(line(what), total=None, rate=""), time.monotonic()

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=_rate(done, unit, time.monotonic() - began))

        yield told


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show on stdout how much is done; gives a function of (done, clips made of it). It starts no thread, so that who uses it may fork.

    total: None where the end is not known.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text, speed = TextColumn("{task.description}"), TaskProgressColumn(show_speed=True)
    known = (text, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    columns = (TextColumn("{task.completed}"), text, speed, TimeElapsedColumn()) if total is None else known
    with bars(*columns, stderr=False, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)

        def report(done: int, clips: int | None = None) -> None:
            more = "" if clips is None else f", {counted(clips, 'clip')}"
            bar.update(task, completed=done, description=f"{what}{more}", refresh=True)

        yield report


def _counted(done: int, total: int, unit: str, gone: float) -> str:
    left = f"  {_minutes(gone / done * (total - done))} left" if done else ""
    return f"{done}/{total} {_rate(done, unit, gone)}  {_minutes(gone)} gone{left}"


def _rate(done: int, unit: str, gone: float) -> str:
    many = f"{unit}s" if unit else ""
    return f"{many}, {done / gone:.3g}/s" if done and gone > 0 else many


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
