"""Prints to any terminal, log file or pipe: characters that it cannot encode are replaced, control characters are escaped, and credentials
are masked.

Names of files, keys, captions and prompts may be a stranger's: an escape sequence in one can move the cursor, rename the window, or
overwrite the line before, and a bidirectional override shows a name backwards. All output of this process goes through a `Door`. Progress
bars, which must control the terminal, are made by `bars`; their texts go through `line`.
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

# Replacements for the characters of sora's own pages and plots. Others, as in file names, are printed by their code, so that names stay
# distinct.
PLAIN = dict.fromkeys("▁▂▃▄▅▆▇█▉▊▋▌", "#") | {"▍": "|", "▎": "|", "▏": "|", "–": "-", "—": "-", "…": "...", "·": "*", "×": "x"}
PLAIN |= {"±": "+-", "→": "->", "≤": "<=", "≥": ">=", "²": "^2", "“": '"', "”": '"', "‘": "'", "’": "'", "μ": "u", "µ": "u", "━": "-"}
NAME = "sora.plain"
# Control characters except tab and line feed, other line ends, and overrides of text direction.
STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
EVERY = 15.0  # seconds between progress lines without a terminal
Told = Callable[[int, int], None]
STYLE = re.compile(r"\033\[[01]m")  # bold and its end, in the pages of --help


class Lines(ValueError):
    """A user's error with a message of several lines."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun, for messages: "1 clip", "3 clips". one, many: the noun, with a verb if one follows ("clip has", "clips
    have"); many is one with an s by default."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


class Lasting:
    """A stream that, after `outlive`, is discarded when it fails: a closed terminal, a pipe without a reader, a log on a full disk. Later
    output is lost."""

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
            os.dup2(nowhere, self.stream.fileno())  # also for output of libraries, and for buffered text
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlive(whether: bool) -> None:
    """Set whether the work goes on when output fails."""
    Lasting.outlived = whether


class Door:
    """A stream that escapes control characters and masks credentials in all that is written. rich_proxied_file: the wrapped stream, under
    the name that rich reads."""

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
    """A text of any number of lines in printable form: control characters escaped, credentials replaced by ***."""
    return STEERING.sub(_escape, masked(text))


def line(text: str) -> str:
    """`shown` for a single line: line ends are escaped, too."""
    return shown(text).replace("\n", "\\n")


def say(*lines: str) -> None:
    """Print lines that may hold a stranger's words; each stays one line."""
    print("\n".join(map(line, lines)))


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def plainly(error: UnicodeError) -> tuple[str, int]:
    """The error handler for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter) or ascii(letter)[1:-1] for letter in error.object[error.start : error.end]), error.end


def in_utf8() -> None:
    """Restart this program in Python's UTF-8 mode if Python reads file names as ASCII, where a dataset with other characters in its names
    could not be read: LC_ALL=C with PYTHONUTF8=0 or PYTHONCOERCECLOCALE=0, as some clusters set them."""
    mode = ["-X", "utf8"]  # the first -X utf8 counts
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.orig_argv[1:3] != mode:
        os.execve(sys.executable, [sys.executable, *mode, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def writable() -> None:
    """Make printing safe in this process: it never fails for the terminal's encoding, and never controls the terminal.

    Output to a stream that the process was started without is discarded.
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
    """Open /dev/null as standard input, output or error if one is closed: else the next opened file, such as a checkpoint, would get its
    number, and messages of a signal handler or a library would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(taken, True)
            assert taken == number


def styled(text: str) -> None:
    """Print a page of sora's own, with its bold headings."""
    stream = raw(sys.stdout)
    stream.write("".join(part if STYLE.fullmatch(part) else shown(part) for part in re.split(f"({STYLE.pattern})", text)) + "\n")


def raw(stream: Any) -> Any:
    """The stream that a `Door` wraps."""
    return stream.rich_proxied_file if isinstance(stream, Door) else stream


@contextmanager
def steered() -> Iterator[None]:
    """A context in which a library may draw its own progress bars on stderr."""
    before, sys.stderr = sys.stderr, raw(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = before


@contextmanager
def bars(*columns: Any, stderr: bool = True, **settings: Any) -> Iterator[Progress]:
    """Progress bars of rich. Lines that are printed meanwhile appear above them, through a `Door` as before. Callers must pass texts of
    tasks through `line`."""
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
    """A context that shows the progress, the speed and the time left; yields a function of (done, total). unit: the noun, as in "clip"."""
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
def counting(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A context that shows progress on stdout; yields a function of (done, clips made so far). It starts no thread, so the caller may fork.

    total: None if it is not known.
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
