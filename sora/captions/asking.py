"""What is asked of a captioner for each clip: requests with the facts that it reads, each named by all that its answer depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sora.captions.captioner import Captioner, CaptionFields, CaptionRequest, CaptionResult, WindowCaption
from sora.captions.taking import TakenFrames
from sora.data.index.index import Index

_NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)


def facts_of(index: Index, row: int) -> dict[str, Any]:
    """What is known of a clip: seconds, fps, height, width, captions (by kind, the first of each), scores, source, extra."""
    said = index.row(row)
    captions: dict[str, str] = {}
    for one in said.captions:
        captions.setdefault(one.kind, one.text)
    known = {"seconds": said.duration, "fps": said.fps, "height": said.height, "width": said.width, "source": said.source}
    return known | {"captions": captions, "scores": index.scores(row), "extra": dict(said.extra)}


def only(facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those facts that have one of these names, with a dot for each level; names that the clip lacks are left out."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = facts
        *above, last = name.split(".")
        for part in above:
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or last not in value:
            continue
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value[last]
    return found


class Namer:
    """Names requests: SHA-256 of the captioner's identity, the pictures with their times, the facts it reads, and the words of windows."""

    def __init__(self, captioner: Captioner) -> None:
        self._identity = json.dumps(captioner.identity(), sort_keys=True, allow_nan=False)

    @property
    def hash(self) -> str:
        """Of the captioner, with its prompt and settings."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def request(self, taken: TakenFrames, *, key: str, facts: Mapping[str, Any], pass_number: int) -> CaptionRequest:
        said = [list(taken.frames.shape), list(taken.times), facts, pass_number]
        digest = self._begun(said)
        digest.update(np.ascontiguousarray(taken.frames))
        given: dict[str, Any] = {"facts": facts, "pass_number": pass_number}
        return CaptionRequest(id=digest.hexdigest(), key=key, frames=taken.frames, times=taken.times, **given)

    def summary(self, windows: Sequence[WindowCaption], *, key: str, facts: Mapping[str, Any], pass_number: int) -> CaptionRequest:
        said = [[round(one.start, 3), round(one.end, 3), one.fields.texts()] for one in windows]
        digest = self._begun(["windows", said, facts, pass_number])
        given: dict[str, Any] = {"facts": facts, "windows": tuple(windows), "pass_number": pass_number}
        return CaptionRequest(id=digest.hexdigest(), key=key, frames=_NO_FRAMES, times=(), **given)

    def _begun(self, said: list[Any]) -> Any:
        return hashlib.sha256(json.dumps([self._identity, said], sort_keys=True, default=str).encode("utf-8", "surrogatepass"))


@dataclass
class AskedClip:
    """A clip whose captions are asked for. windows: its stretches. ids: the names of the requests for each, for each pass; for a clip of
    several stretches, a pass's last name is that of the summary, once all of its others are answered. reason: why no more is asked.
    """

    row: int
    key: str
    facts: Mapping[str, Any]
    windows: list[tuple[float, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    ids: dict[int, list[str]] = field(default_factory=dict)
    summaries: dict[int, str] = field(default_factory=dict)
    answers: dict[str, CaptionResult] = field(default_factory=dict)
    reason: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to ask."""
        if self.reason:
            return True
        names = [name for names in self.ids.values() for name in names]
        if not names or any(name not in self.answers for name in names):
            return False
        return all(self._failed(number) or self.final(number) is not None for number in self.ids)

    def ready(self, number: int) -> list[WindowCaption] | None:
        """The captions of all stretches in a pass, if they are there and a summary is still to be asked for."""
        names = self.ids[number]
        if len(self.windows) < 2 or number in self.summaries or any(name not in self.answers for name in names) or self._failed(number):
            return None
        said = [self.answers[name].fields for name in names]
        return [WindowCaption(start, end, one) for (start, end), one in zip(self.windows, said, strict=True) if one is not None]

    def final(self, number: int) -> CaptionResult | None:
        """The result for the whole clip in a pass; None if it is not there."""
        name = self.summaries.get(number) if len(self.windows) > 1 else self.ids[number][0]
        return None if name is None else self.answers.get(name)

    def _failed(self, number: int) -> bool:
        return any(name in self.answers and self.answers[name].fields is None for name in self.ids[number])

    def fields(self, number: int = 0) -> CaptionFields | None:
        """The caption of the whole clip in a pass; None if there is none."""
        found = self.final(number) if number in self.ids else None
        return None if found is None else found.fields

    def why(self) -> str:
        """Why there is no caption; "" if there is one."""
        if self.reason or self.fields() is not None:
            return self.reason
        return next((one.error for one in self.answers.values() if one.error), "no answer")
