"""Printing on whatever terminal, log file or pipe there is: what it cannot write is written in letters that it can."""

from __future__ import annotations

import codecs
import io
import sys

# Of what our own pages and plots hold; anything else, such as a file's name, is told by its code, so that it can be told from others.
PLAIN = dict.fromkeys("▁▂▃▄▅▆▇█▉▊▋▌", "#") | {"▍": "|", "▎": "|", "▏": "|", "–": "-", "—": "-", "…": "...", "·": "*", "×": "x"}
PLAIN |= {"±": "+-", "→": "->", "≤": "<=", "≥": ">=", "²": "^2", "“": '"', "”": '"', "‘": "'", "’": "'", "μ": "u", "µ": "u", "━": "-"}
NAME = "sora.plain"


def plainly(error: UnicodeError) -> tuple[str, int]:
    """The error handler of an encoding that has not every letter."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter) or ascii(letter)[1:-1] for letter in error.object[error.start : error.end]), error.end


def writable() -> None:
    """From here on nothing that this process prints fails for its terminal's encoding."""
    codecs.register_error(NAME, plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != NAME:
            stream.reconfigure(errors=NAME)
