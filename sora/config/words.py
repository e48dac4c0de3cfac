"""Suggestions for a mistyped word."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from sora.gate.former_names import current_key


def meant(word: str, names: Iterable[str]) -> str:
    """The end of a message: " (did you mean 'depth'?)", " (it is called 'depth' now)", or the empty string if no name is similar.

    A dotted key is also compared by its last part, so that `detph` finds `dit.depth`.
    """
    names = list(names)
    if (now := current_key(word)) != word and now in names:
        return f" (it is called {now!r} now)"
    near = get_close_matches(word, names, n=2, cutoff=0.6)
    if not near:
        ends = {name.rsplit(".", 1)[-1]: name for name in names}
        near = [ends[end] for end in get_close_matches(word.rsplit(".", 1)[-1], ends, n=2, cutoff=0.7)]
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names in order, for the end of a message: "a, b, c", or "none"."""
    return ", ".join(sorted(names)) or "none"
