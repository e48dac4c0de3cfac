"""Finds words in captions, and swaps one for another of its group."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of some words or phrases, the longest first, whole words only."""
    return re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in sorted(words, key=len, reverse=True))})\b", re.IGNORECASE)


def swapped(caption: str, groups: Sequence[Sequence[str]], draw: np.random.Generator) -> str | None:
    """The caption with one of its words that is in a group replaced by another word of the group; None if it has none.

    An "a" or "an" before the word follows the new word, so that the grammar does not tell that it was changed.
    """
    found = [(match, group) for group in groups for match in any_of(group).finditer(caption)]
    if not found:
        return None
    match, group = found[int(draw.integers(len(found)))]
    others = [word for word in group if word.lower() != match[0].lower()]
    word = others[int(draw.integers(len(others)))]
    before = caption[: match.start()]
    if article := re.search(r"\b([Aa])n? $", before):
        before = f"{before[: article.start()]}{article[1]}{'n' if word[0].lower() in 'aeiou' else ''} "
    return f"{before}{word[0].upper() + word[1:] if match[0][0].isupper() else word}{caption[match.end() :]}"
