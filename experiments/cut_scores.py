"""Compares found transitions with known ones: one to one, within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.composed_films import Decoy, Kind, Known
from sora.curation.spans import Transition

TOLERANCE = 2  # frames by which spans are widened before they must meet (the evaluation of TransNetV2)
HARD: tuple[Kind, ...] = ("hard",)
GRADUAL: tuple[Kind, ...] = ("dissolve", "fade", "wipe")


@dataclass
class Tally:
    """Counts over films. met, known: of each kind. false: found where nothing is; decoyed: those of `false` that a decoy explains. exact:
    hard cuts found at their very frame. edges: by how many frames the ends of gradual transitions are wrong. missed, wrong: (film,
    transition)."""

    met: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    false: int = 0
    decoyed: int = 0
    exact: int = 0
    edges: list[int] = field(default_factory=list)
    missed: list[tuple[int, Known]] = field(default_factory=list)
    wrong: list[tuple[int, Transition]] = field(default_factory=list)

    def add(self, film: int, known: Sequence[Known], decoys: Sequence[Decoy], found: Sequence[Transition]) -> None:
        """Count one film. Pairs that meet are matched, the nearest ones first, each at most once; found ones that are left over are
        false."""
        pairs = sorted(
            (abs(one.first + one.end - each.first - each.end), place, other)
            for place, each in enumerate(known)
            for other, one in enumerate(found)
            if one.first <= each.end + TOLERANCE and one.end >= each.first - TOLERANCE
        )
        match: dict[int, int] = {}
        for _, place, other in pairs:
            if place not in match and other not in match.values():
                match[place] = other
        for place, each in enumerate(known):
            self.known[each.kind] = self.known.get(each.kind, 0) + 1
            if place not in match:
                self.missed.append((film, each))
                continue
            one = found[match[place]]
            self.met[each.kind] = self.met.get(each.kind, 0) + 1
            self.exact += each.kind == "hard" and one == (each.first, each.first)
            if each.kind != "hard":
                self.edges += [abs(one.first - each.first), abs(one.end - each.end)]
        left = [one for other, one in enumerate(found) if other not in match.values()]
        self.false += len(left)
        self.wrong += [(film, one) for one in left]
        for one in left:
            self.decoyed += any(one.first <= decoy.end + TOLERANCE and one.end >= decoy.first - TOLERANCE for decoy in decoys)

    def recall(self, *kinds: Kind) -> float:
        return sum(self.met.get(kind, 0) for kind in kinds) / sum(self.known[kind] for kind in kinds)

    def f1(self, *kinds: Kind) -> float:
        """The harmonic mean of recall and precision. A false one has no kind, so that it counts in full whatever the kinds are."""
        met, known = sum(self.met.get(kind, 0) for kind in kinds), sum(self.known[kind] for kind in kinds)
        return 2 * met / (met + self.false + known)
