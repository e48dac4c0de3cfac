"""Where encoders cut captions, and which captions lose words there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

_AT_ONCE = 1024
_SHOWN = 60  # letters of a caption in a line


@dataclass(frozen=True)
class CaptionLimit:
    """A caption's most tokens. key: of the configuration. lost(captions, tokens): what each says behind so many, "" for nothing."""

    key: str
    tokens: int
    lost: Callable[[list[str], int], list[str]]

    def of(self, captions: list[str]) -> list[str]:
        """What is cut off of each caption."""
        return self.lost(captions, self.tokens)


@dataclass(frozen=True)
class TruncatedCaptions:
    """Captions that are longer than a limit: how many of how many, the first of them and what it loses."""

    key: str
    tokens: int
    captions: int
    of: int
    first: str
    lost: str

    def line(self, what: str = "captions") -> str:
        """For people."""
        verb = "is" if self.captions == 1 else "are"
        return (
            f"{self.captions:,} of {self.of:,} {what} {verb} longer than {self.key}={self.tokens} and cut there; "
            f"of {_shown(self.first)} is lost: {_shown(self.lost)}"
        )


def with_fill(limits: Sequence[CaptionLimit], fill: int) -> tuple[CaptionLimit, ...]:
    """The limits of an encoder, and that of a network which reads `fill` words of a caption (0: all) where it is lower."""
    if not limits or not 0 < fill < limits[0].tokens:
        return tuple(limits)
    return (replace(limits[0], key="dit.text.fill", tokens=fill), *limits[1:])


def cuts(limits: Sequence[CaptionLimit], captions: Iterable[str]) -> list[TruncatedCaptions]:
    """What each limit cuts of some captions; none for a limit that cuts nothing."""
    found: dict[str, TruncatedCaptions] = {}
    rest, seen = iter(captions), 0
    while some := list(islice(rest, _AT_ONCE)):
        seen += len(some)
        for limit in limits:
            long = [(caption, lost) for caption, lost in zip(some, limit.of(some), strict=True) if lost]
            if long:
                before = found.get(limit.key, TruncatedCaptions(limit.key, limit.tokens, 0, 0, *long[0]))
                found[limit.key] = replace(before, captions=before.captions + len(long))
    return [replace(cut, of=seen) for cut in found.values()]


def summed(parts: Iterable[Mapping[str, TruncatedCaptions]], of: int) -> list[TruncatedCaptions]:
    """Cuts by key of several lots of captions, `of` together."""
    found: dict[str, TruncatedCaptions] = {}
    for part in parts:
        for key, cut in part.items():
            before = found.get(key, replace(cut, captions=0))
            found[key] = replace(before, captions=before.captions + cut.captions)
    return [replace(cut, of=of) for cut in found.values()]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
