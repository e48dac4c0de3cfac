"""Flags that the words of a caption give alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from sora.captions.checks.flags import CaptionChecks
from sora.captions.parsing import REFUSAL

INSTALL = "checks.language needs py3langid: pip install 'py3langid>=0.4', which is in the extra sora[captions]"
_WORD = re.compile(r"\w+(?:'\w+)?")
_PICTURES = r"(frames?|images?|pictures?|screenshots?|stills?)"
_FRAMES = re.compile(
    rf"(?i)\b(the|these|this|each|first|last|second|third|final|following|provided|given|\d+)\s+{_PICTURES}\b"
    r"|\b(in|across|throughout) (all |the )?(frames|images)\b"
    r"|\b(the|this) (prompt|instructions?|json|schema|user|request)\b|<\d+(\.\d+)? seconds>"
)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; of scripts without spaces, its letters."""
    return [word for found in _WORD.findall(text.lower()) for word in (list(found) if _crowded(found) else [found])]


def _crowded(word: str) -> bool:
    """Whether a script writes words without spaces: Chinese, Japanese, Thai."""
    return any("\u0e00" <= letter <= "\u0e7f" or "\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff" for letter in word)


def repeated_share(words: list[str]) -> float:
    """The share of runs of three words that stood before."""
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def word_flags(short: str, dense: str, checks: CaptionChecks) -> list[str]:
    """The flags of a caption by its words."""
    said, both = words_of(dense), f"{short} {dense}"
    brief = words_of(short)
    found = {
        "refusal": REFUSAL.search(both) is not None,
        "about_frames": _FRAMES.search(both) is not None,
        "repetition": repeated_share(said) > checks.repeated,
        "same_sentence": brief == said,
        "too_short": len(said) < checks.dense_words[0],
        "too_long": len(said) > checks.dense_words[1] or len(brief) > checks.short_words,
        "language": checks.language is not None and _language(dense) != checks.language,
    }
    return [name for name, flagged in found.items() if flagged]


def agreement(one: str, two: str) -> float:
    """The share of the words of either of two texts that both have (Jaccard)."""
    first, second = set(words_of(one)), set(words_of(two))
    return len(first & second) / len(first | second) if first | second else 1.0


def refuse_lacking(checks: CaptionChecks) -> None:
    """Raise ValueError, before any work, if a check needs a package that is not installed, or a language that it does not know."""
    if checks.language is not None:
        _language("A person walks along a street in the rain.")


def _language(text: str) -> str:
    return _classifier()(text)[0]


@cache
def _classifier() -> Callable[[str], Any]:
    try:
        import py3langid
    except ImportError:
        raise ValueError(INSTALL) from None
    return py3langid.classify
