"""How often a captioner is right: per attribute and altogether, of the captions that it writes and of the answers of its heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sora.captioner.attributes import Attributes

ALL = "all"  # the share of clips of which every attribute is right
ANSWERS = "answers"  # stands for a kind of captions, in the figures of the heads


@dataclass
class CaptionScores:
    """Counts of right captions. A caption is compared with a true one of its kind: for each attribute that the true one tells, object by
    object, the other must tell the same.

    counts: right and asked, by (kind, attribute). confusions: by attribute, how often a clip with one value was said to show another, for
    clips that show one value; a caption that names no value counts as "-".
    """

    attributes: Attributes
    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    confusions: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)

    def caption(self, kind: str, said: str, truth: str) -> dict[str, bool]:
        """Count a caption; whether it is right, by attribute and altogether. Empty if the true one tells no attribute."""
        wanted, found = self.attributes.told(truth), self.attributes.told(said)
        for name, values in wanted.items():
            if len(values) == 1:
                self._confuse(name, values[0], (found.get(name) or ("-",))[0])
        return self._count(kind, {name: tuple(found.get(name, ())) == tuple(values) for name, values in wanted.items()})

    def answers(self, said: Mapping[str, str], shown: Mapping[str, Sequence[str]]) -> dict[str, bool]:
        """Count the answers of the heads. shown: the values of each attribute that is known of the clip; any of them is right."""
        return self._count(ANSWERS, {name: said[name] in values for name, values in shown.items() if name in said})

    def _confuse(self, name: str, truth: str, said: str) -> None:
        self.confusions.setdefault(name, Counter())[truth, said] += 1

    def _count(self, kind: str, verdicts: dict[str, bool]) -> dict[str, bool]:
        if verdicts:
            verdicts = {**verdicts, ALL: all(verdicts.values())}
        for name, right in verdicts.items():
            pair = self.counts.setdefault((kind, name), [0, 0])
            pair[0] += right
            pair[1] += 1
        return verdicts

    def figures(self) -> dict[str, float]:
        """Shares of right ones, as KIND_ATTRIBUTE, with "answers" for the heads, and KIND_all."""
        return {f"{kind}_{name}": right / asked for (kind, name), (right, asked) in self.counts.items()}

    def tables(self) -> dict[str, dict[str, dict[str, int]]]:
        """By attribute: of the clips with each value, how many were said to show which."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for name, pairs in self.confusions.items():
            for (truth, said), count in sorted(pairs.items()):
                found.setdefault(name, {}).setdefault(truth, {})[said] = count
        return found
