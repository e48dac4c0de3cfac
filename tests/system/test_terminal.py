"""What is printed steers no terminal and shows no credential, whoever wrote the words; bars and headings of ours do what they should."""

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sora.system import terminal

STEERING = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\b", "\x00", "\x7f", "\u2028", "\u202e", "\u2066", "\x85", "\v"]
HONEST = "naïve 🏴‍☠️ שלום مرحبا 你好 a\tb — ±3 ▇▆ \u200f"


def writing(monkeypatch):
    """From here on this process prints to a file; gives what reached it. (Not a fixture: pytest puts its own streams between them and a
    test.)"""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    terminal.writable()
    return lambda: stream.buffer.getvalue().decode()


@pytest.mark.parametrize("bad", STEERING)
def test_words_of_strangers_are_written_with_escapes_through_every_way_of_printing(bad, monkeypatch):
    import logging
    import warnings

    written = writing(monkeypatch)

    print("a", f"name {bad} x")
    sys.stderr.write(f"err {bad}\n")
    sys.stdout.writelines([f"lines {bad}\n"])
    logging.getLogger("of a library").warning("log %s", bad)
    warnings.warn(f"warned {bad}", stacklevel=1)
    try:
        raise KeyError(bad)
    except KeyError:
        import traceback

        traceback.print_exc()
    assert bad not in written()
    assert f"name {ascii(bad)[1:-1]} x".replace("\\\\", "\\") in written()


def test_honest_letters_stay_as_they_are(monkeypatch):
    written = writing(monkeypatch)
    print(HONEST)
    assert written() == f"{HONEST}\n"
    assert terminal.line("a\nb") == "a\\nb" and terminal.shown("a\nb") == "a\nb"


def test_a_door_is_put_once_and_is_otherwise_the_stream(monkeypatch):
    writing(monkeypatch)
    before = sys.stdout
    terminal.writable()
    assert sys.stdout is before and sys.stdout.encoding == "utf-8" and not sys.stdout.isatty()
    assert terminal.raw(terminal.raw(sys.stdout)) is terminal.raw(sys.stdout)


def test_headings_of_ours_are_bold_and_what_they_stand_beside_is_not(monkeypatch):
    written = writing(monkeypatch)
    terminal.styled("\033[1mKEYS\033[0m \033[2Jname")
    assert written() == "\033[1mKEYS\033[0m \\x1b[2Jname\n"


def test_bars_steer_the_terminal_and_what_is_printed_meanwhile_does_not(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    stream = Terminal(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    terminal.writable()
    doors = sys.stdout, sys.stderr
    from rich.progress import BarColumn, TextColumn

    with terminal.bars(TextColumn("{task.description}", markup=False), BarColumn()) as progress:
        task = progress.add_task(terminal.line("of \x1b]0;a stranger\x07"), total=2)
        progress.update(task, completed=1)
        print("said \x1b]0;meanwhile\x07 https://user:word@host/")
    assert (sys.stdout, sys.stderr) == doors
    written = stream.buffer.getvalue().decode()
    assert "\x1b[" in written and "\x1b]0;" not in written and "\x07" not in written and "user:word" not in written
    assert "\\x1b]0;meanwhile\\x07 https://***@host/" in written and "of \\x1b]0;a stranger\\x07" in written


@pytest.mark.parametrize("outlived", [False, True])
def test_a_stream_that_takes_no_more_ends_a_command_whose_work_is_to_print_and_no_other(outlived, monkeypatch):
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(terminal.Lasting, "outlived", False)
    terminal.writable()
    terminal.outlive(outlived)
    print("heard", file=sys.stderr)
    os.close(reading)
    if outlived:
        print("said to nobody", file=sys.stderr)
        sys.stderr.flush()
        os.write(writing, b"a library's own words")
        stream.close()
        return
    with pytest.raises(BrokenPipeError):
        print("said to nobody", file=sys.stderr)
    terminal.outlive(True)
    stream = terminal.raw(sys.stderr)
    stream.flush()  # what it still holds


def test_without_standard_streams_no_file_is_taken_for_one():
    """Its number would be theirs, and a handler of signals, which writes to 2, would write into a checkpoint."""
    code = (
        "import os, sys; from sora.system import terminal; terminal.writable(); first = os.open(os.devnull, os.O_RDONLY)\n"
        "print('nowhere'); print('nowhere', file=sys.stderr); os.write(2, b'nowhere')\n"
        "os._exit(first <= 2 or sys.stderr.isatty())"
    )
    shell = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", shell]).returncode == 0


ASCII_LOCALES = ({"PYTHONUTF8": "0"}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {})
STARTED = ([], ["-X", "utf8=0"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "how"),
    [  # each with one way here, with the other in make test-long: three commands a case
        pytest.param(more, how, marks=() if (number + place) % 2 else pytest.mark.long)
        for number, more in enumerate(ASCII_LOCALES)
        for place, how in enumerate(STARTED)
    ],
)
def test_words_and_names_are_utf8_whatever_the_locale_is_called(tmp_path, more, how):
    """The shell's bytes are a text, and a file of that name is found, where Python would read both as ASCII."""
    import os
    import subprocess

    (tmp_path / "ü").mkdir()
    (tmp_path / "ü" / "é.mp4").write_bytes(b"no video")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))} | {"LC_ALL": "C"} | more
    for words, told in (("sample checkpoint=ö prompt=ü", "ö does not exist"), ("prepare input=ü output=ö", "input=ü holds no video")):
        verb, *rest = words.split()
        line = [sys.executable, *how, "-m", f"sora.{verb}", *rest]
        found = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, check=False)
        assert (found.returncode, told in found.stderr.decode()) == (2, True), found.stderr
    assert "é.mp4" in found.stderr.decode()
    bad = subprocess.run(
        [sys.executable, *how, "-m", "sora.sample", "checkpoint=x", b"prompt=\xfc"], env=env, capture_output=True, check=False
    )
    assert bad.returncode == 2 and b"type it in UTF-8" in bad.stderr


@pytest.mark.parametrize(("count", "told"), [(0, "0 packs"), (1, "1 pack"), (2, "2 packs"), (2000, "2,000 packs")])
def test_one_of_a_thing_is_not_told_as_several(count, told):
    assert terminal.counted(count, "pack") == told
    assert terminal.counted(count, "clip has", "clips have").startswith("1 clip has" if count == 1 else told.split()[0] + " clips have")


COUNTABLE = (
    "clips",
    "videos",
    "frames",
    "samples",
    "files",
    "captions",
    "rows",
    "fields",
    "columns",
    "groups",
    "values",
    "parts",
    "sets",
    "neighbours",
)


@pytest.mark.parametrize("room", ["metrics", "gate"])
def test_messages_of_one_thing_are_not_in_the_plural(room):
    """A number that may be one, "1 clips", goes through `counted`, or stands so that no plural follows it."""
    plural = re.compile(rf" ({'|'.join(COUNTABLE)})\b")
    found = []
    for path in sorted((Path(terminal.__file__).parent / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs = list(zip(node.values, node.values[1:], strict=False)) if isinstance(node, ast.JoinedStr) else []
            found += [
                f"{path}:{number.lineno}: {ast.unparse(number.value)}{text.value[:20]}"
                for number, text in pairs
                if isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant) and plural.match(str(text.value))
            ]
    assert not found, "\n".join(found)


def test_one_is_counted_as_one():
    assert [terminal.counted(count, "clip") for count in (0, 1, 2, 1000)] == ["0 clips", "1 clip", "2 clips", "1,000 clips"]
    assert [terminal.counted(count, "clip has", "clips have") for count in (1, 2)] == ["1 clip has", "2 clips have"]
