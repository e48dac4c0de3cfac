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
    hard cuts found at their very frame. missed: (film, transition)."""

    met: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    false: int = 0
    decoyed: int = 0
    exact: int = 0
    missed: list[tuple[int, Known]] = field(default_factory=list)
    wrong: list[tuple[int, Transition]] = field(default_factory=list)

    def add(self, film: int, known: Sequence[Known], decoys: Sequence[Decoy], found: Sequence[Transition]) -> None:
        """Count one film. A known transition takes the nearest found one that no other took; all that are left over are false."""
        left = list(found)
        for each in known:
            near = [one for one in left if one.first <= each.end + TOLERANCE and one.end >= each.first - TOLERANCE]
            self.known[each.kind] = self.known.get(each.kind, 0) + 1
            if not near:
                self.missed.append((film, each))
                continue
            best = min(near, key=lambda one: abs(one.first + one.end - each.first - each.end))
            left.remove(best)
            self.met[each.kind] = self.met.get(each.kind, 0) + 1
            self.exact += each.kind == "hard" and best == (each.first, each.first)
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
