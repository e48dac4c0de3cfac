"""Token limits of text encoders, and reports of the captions that they truncate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

_AT_ONCE = 1024
_SHOWN = 60  # characters of a caption in a message


@dataclass(frozen=True)
class CaptionLimit:
    """Maximum number of tokens of a caption.

    key: configuration key of the limit. lost: function (captions, tokens) that returns the text of each caption beyond `tokens` tokens,
    "" for captions that fit.
    """

    key: str
    tokens: int
    lost: Callable[[list[str], int], list[str]]

    def of(self, captions: list[str]) -> list[str]:
        """Text that each caption loses, "" if it fits."""
        return self.lost(captions, self.tokens)


@dataclass(frozen=True)
class TruncatedCaptions:
    """Report of the captions that exceed a limit: `captions` out of `of`, with the first of them and the text that it loses.

    most: characters that the longest of them loses; 0 in reports that older code wrote.
    """

    key: str
    tokens: int
    captions: int
    of: int
    first: str
    lost: str
    most: int = 0

    def line(self, what: str = "captions") -> str:
        """One sentence for the user. what: plural noun for the captions."""
        verb = "is" if self.captions == 1 else "are"
        longest = f"; the longest loses {self.most:,} characters" if self.captions > 1 and self.most else ""
        return (
            f"{self.captions:,} of {self.of:,} {what} {verb} longer than {self.key}={self.tokens} and cut there; "
            f"of {_shown(self.first)} is lost: {_shown(self.lost)}{longest}"
        )


def with_fill(limits: Sequence[CaptionLimit], fill: int) -> tuple[CaptionLimit, ...]:
    """Limits of an encoder, the first lowered to `fill`, the number of tokens that the network reads (0: all), if that is smaller."""
    if not limits or not 0 < fill < limits[0].tokens:
        return tuple(limits)
    return (replace(limits[0], key="dit.text.fill", tokens=fill), *limits[1:])


def cuts(limits: Sequence[CaptionLimit], captions: Iterable[str]) -> list[TruncatedCaptions]:
    """Report for each limit that truncates at least one of the captions."""
    found: dict[str, TruncatedCaptions] = {}
    rest, seen = iter(captions), 0
    while some := list(islice(rest, _AT_ONCE)):
        seen += len(some)
        for limit in limits:
            long = [(caption, lost) for caption, lost in zip(some, limit.of(some), strict=True) if lost]
            if long:
                before = found.get(limit.key, TruncatedCaptions(limit.key, limit.tokens, 0, 0, *long[0]))
                most = max(before.most, *(len(lost) for _, lost in long))
                found[limit.key] = replace(before, captions=before.captions + len(long), most=most)
    return [replace(cut, of=seen) for cut in found.values()]


def summed(parts: Iterable[Mapping[str, TruncatedCaptions]], of: int) -> list[TruncatedCaptions]:
    """Merge the reports, by key, of several groups of captions. of: number of captions in all groups."""
    found: dict[str, TruncatedCaptions] = {}
    for part in parts:
        for key, cut in part.items():
            before = found.get(key, replace(cut, captions=0))
            found[key] = replace(before, captions=before.captions + cut.captions, most=max(before.most, cut.most))
    return [replace(cut, of=of) for cut in found.values()]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
