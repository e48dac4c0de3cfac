"""Late rules on scores, licences, consent and claims decide which clips are kept; each other one has one first reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from sora.curation.inputs import SourceFacts
from sora.gate.records import lines_of, read_bytes, text_of
from sora.safety.claims import OriginClaims

_HASH = re.compile(r"(sha256:)?[0-9a-f]{64}")


class Candidate(NamedTuple):
    """A clip about which is decided. source: the name of its video. content: the video's SHA-256, or the dataset clip's.

    guard: the clip of an evaluation set that it shows again, or "". reason: why it is no clip at all, or "". video: the SHA-256 of the
    video that a dataset's clip was cut from, or "" if its row does not say.
    """

    source: str
    content: str
    number: int
    seconds: float
    scores: Mapping[str, float]
    facts: SourceFacts
    claims: OriginClaims
    guard: str = ""
    reason: str = ""
    video: str = ""


class Decision(NamedTuple):
    """Why a clip is left out ("": it is kept). rule: the short name of the reason, by which the funnel counts."""

    rule: str = ""
    reason: str = ""


KEPT = Decision()


@dataclass(frozen=True, kw_only=True)
class SelectionRules:
    """Rules that choose clips, tried in this order: opt-outs, claims, licence, consent, scores, evaluation sets, duplicates, quotas.

    rules: [least, most] for scores by name; null for no limit. opt_out: a file with, on each line, the SHA-256 of a video or a pattern of
    the paths of sources. licences, consents: those that are allowed (None: any; "" is one that is not known). claims: what a C2PA claim
    leads to: "refuse" leaves out what may not be used for training, "ignore" does not. unread_claims: the same for manifests that cannot be
    read. synthetic: "keep" or "refuse" clips that a claim says a model made; kept ones are marked. duplicates: "refuse" or "ignore".
    quota_by: a score's name or "source", of each value of which quota_most clips are kept. quota_width: values of a score that lie in one
    interval of this width count as one.
    """

    rules: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    opt_out: str | None = None
    licences: Sequence[str] | None = None
    consents: Sequence[str] | None = None
    claims: str = "refuse"
    unread_claims: str = "refuse"
    synthetic: str = "keep"
    duplicates: str = "refuse"
    quota_by: str | None = None
    quota_width: float | None = None
    quota_most: int | None = None

    def __post_init__(self) -> None:
        for name, words in (("claims", _DO), ("unread_claims", _DO), ("duplicates", _DO), ("synthetic", ("keep", "refuse"))):
            if (said := getattr(self, name)) not in words:
                raise ValueError(f"select.{name}={said} is none of {', '.join(words)}")
        for name, limits in self.rules.items():
            if isinstance(limits, str) or len(limits) != 2 or not all(one is None or _number(one) for one in limits):
                raise ValueError(f"select.rules.{name}={limits} is no [least, most]; give two numbers, null for no limit, as in [0.2,null]")
            least, most = limits
            if least is not None and most is not None and least > most:
                raise ValueError(f"select.rules.{name}={list(limits)}: no score is at least {least:g} and at most {most:g}")
        if (self.quota_by is None) != (self.quota_most is None):
            raise ValueError("select.quota_by and select.quota_most go together: of what, and how many clips of each")

    def described(self) -> dict[str, Any]:
        """All settings, JSON-able, the opt-out list by its lines."""
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        listed = {name: list(said[name]) if said[name] is not None else None for name in ("licences", "consents")}
        return said | listed | {"rules": {name: list(limits) for name, limits in self.rules.items()}, "opt_out": self._opted_out()}

    def deciding(self) -> Decider:
        """A decider that has seen no clip yet."""
        return Decider(self)

    def found(self, clip: Candidate) -> Decision:
        return Decision(clip.reason.partition(":")[0], clip.reason) if clip.reason else KEPT

    def opted(self) -> Callable[[Candidate], Decision]:
        """A function that decides by the opt-out list."""
        opted_out = self._opted_out()
        hashes = {line.removeprefix("sha256:") for line in opted_out if _HASH.fullmatch(line)}
        patterns = [line for line in opted_out if not _HASH.fullmatch(line)]

        def look(clip: Candidate) -> Decision:
            if clip.content in hashes or clip.video in hashes:
                return Decision("opt-out", "its owner opted out: its SHA-256 is in select.opt_out")
            names = (clip.source, clip.facts.origin)
            line = next((line for line in patterns if any(name and fnmatchcase(name, line) for name in names)), None)
            return KEPT if line is None else Decision("opt-out", f"its owner opted out: {line} in select.opt_out fits its source")

        return look

    def claimed(self, clip: Candidate) -> Decision:
        claims = clip.claims
        if self.claims == "refuse" and claims.training in ("notAllowed", "constrained"):
            return Decision("claim on training", f"its C2PA claim on training says {claims.training}")
        if self.unread_claims == "refuse" and claims.state == "unread":
            return Decision("claims unread", f"its claims of origin are unread: {claims.why}")
        if self.synthetic == "refuse" and claims.synthetic:
            return Decision("synthetic", "its C2PA claim says that a model made it")
        return KEPT

    def allowed(self, clip: Candidate) -> Decision:
        for name, said, allowed in (("licence", clip.facts.licence, self.licences), ("consent", clip.facts.consent, self.consents)):
            if allowed is not None and said not in allowed:
                return Decision(
                    name, f"its {name} is {said or 'not known'}, and select.{name}s has {', '.join(map(repr, allowed)) or 'none'}"
                )
        return KEPT

    def scored(self, clip: Candidate) -> Decision:
        for name, (least, most) in self.rules.items():
            value = clip.scores.get(name)
            if value is None or math.isnan(value):
                return Decision(f"no {name}", f"it has no score {name}, and select.rules has a limit for it")
            if least is not None and value < least:
                return Decision(f"{name} < {least:g}", f"its {name} is {value:.6g}, and {least:g} is the least")
            if most is not None and value > most:
                return Decision(f"{name} > {most:g}", f"its {name} is {value:.6g}, and {most:g} is the most")
        return KEPT

    def guarded(self, clip: Candidate) -> Decision:
        if clip.guard:
            return Decision("evaluation", f"it shows what {clip.guard} shows, a clip of duplicates.against")
        return KEPT

    def _opted_out(self) -> list[str]:
        return [] if self.opt_out is None else list(_lines(Path(self.opt_out)))


class Decider:
    """Decides about clips that come one after another, in an order that is the same in every run."""

    def __init__(self, selection: SelectionRules) -> None:
        self.selection = selection
        self._looks = (selection.found, selection.opted(), selection.claimed, selection.allowed, selection.scored, selection.guarded)
        self._taken: dict[Any, int] = {}

    def alone(self, clip: Candidate) -> Decision:
        """The decision about a clip by itself, whatever other clips there are."""
        for look in self._looks:
            if (decision := look(clip)) is not KEPT:
                return decision
        return KEPT

    def __call__(self, clip: Candidate, *, copy_of: str = "") -> Decision:
        """The decision about the next clip. copy_of: the clip that it repeats and that is kept, or ""."""
        if (decision := self.alone(clip)) is not KEPT:
            return decision
        if copy_of and self.selection.duplicates == "refuse":
            return Decision("duplicate", f"it shows the same as {copy_of}")
        by, most = self.selection.quota_by, self.selection.quota_most
        if by is None or most is None:
            return KEPT
        group = self._group(clip, by)
        self._taken[group] = self._taken.get(group, 0) + 1
        if self._taken[group] > most:
            return Decision(f"quota of {by}", f"select.quota_most={most} clips of {by} {group} are kept already")
        return KEPT

    def refuse_unknown(self, names: Collection[str]) -> None:
        """Raise ValueError if a rule is about a score that is none of `names`."""
        asked = [(f"select.rules.{name}", name) for name in self.selection.rules]
        if self.selection.quota_by not in (None, "source"):
            asked.append(("select.quota_by", str(self.selection.quota_by)))
        for key, name in asked:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                told = f", but {near[0]!r}" if near else ""
                raise ValueError(f"{key}: no clip has a score {name!r}{told}; there are {', '.join(sorted(names)) or 'none'}")

    def _group(self, clip: Candidate, by: str) -> Any:
        if by == "source":
            return clip.source
        value, width = clip.scores.get(by, math.nan), self.selection.quota_width
        return math.floor(value / width) if width and not math.isnan(value) else value


_DO = ("refuse", "ignore")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(path: Path) -> Iterator[str]:
    named = f"select.opt_out={path}"
    for line in lines_of(text_of(read_bytes(path, named), named), named):
        if (said := line.strip()) and not said.startswith("#"):
            yield said.lower() if _HASH.fullmatch(said.lower()) else said
