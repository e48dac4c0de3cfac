"""The interface of a captioner: requests, which are the frames of clips with their times, to results, which are captions or errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

KINDS = ("short", "dense", "structured")  # kinds of the captions that a set gets, see `CaptionFields.texts`


@dataclass(frozen=True, kw_only=True)
class CaptionFields:
    """What a captioner says of a clip. short: one sentence. dense: all that is seen. actions: in the order of time. text_seen: lettering in
    the picture, as it stands there. A field that does not apply is empty; short and dense are not."""

    short: str
    dense: str
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    camera: str = ""
    light: str = ""
    style: str = ""
    text_seen: str = ""

    def texts(self) -> dict[str, str]:
        """The captions by kind: short, dense, and structured, which is the other fields as one line of JSON without the empty ones (the
        kind is absent if all are)."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in self.structured().items() if value}
        line = {"structured": json.dumps(fields, ensure_ascii=False)} if fields else {}
        return {"short": self.short, "dense": self.dense, **line}

    def structured(self) -> dict[str, str | tuple[str, ...]]:
        """The fields other than the two sentences, in a fixed order."""
        return {name: getattr(self, name) for name in ("subjects", "actions", "camera", "light", "style", "text_seen")}


class WindowCaption(NamedTuple):
    """The caption of a part of a long clip. start, end: seconds from the clip's first frame."""

    start: float
    end: float
    fields: CaptionFields


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionRequest:
    """A request for the caption of a clip, of a window of one, or of a whole clip from the captions of its windows.

    id: the request's name, unique within a job; the result bears it. key: of the clip. times: of the frames, in seconds from the clip's
    first frame, ascending. facts: what is known of the clip, of those that the captioner `reads`. They come with the dataset, so they may
    be a stranger's. windows: where they are given there are no frames, and the
    request is for one caption of the whole from theirs. pass_number: 1 for a second opinion, for which a captioner that draws draws anew.
    """

    id: str
    key: str
    frames: UInt8[np.ndarray, "F H W 3"]
    times: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[WindowCaption, ...] = ()
    pass_number: int = 0


@dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """What came of a request. fields: None if there is no caption, and `error` says why. notes: flags that reading the answer left, such as
    "repaired". attempts: how often a server was asked. tokens_in, tokens_out: over all attempts, as the server counts them; 0 where nobody
    counts. cut: the captioner was stopped before it had tried enough; such a request is asked again by the next command."""

    id: str
    fields: CaptionFields | None = None
    error: str = ""
    notes: tuple[str, ...] = ()
    attempts: int = 1
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cut: bool = False


@runtime_checkable
class Captioner(Protocol):
    """The interface of a captioner."""

    @property
    def name(self) -> str:
        """Who writes, such as the model's name: `captioner` of the captions in the set."""
        ...

    @property
    def even_frames(self) -> bool:
        """Whether it takes frames at even times, as a video, instead of those that differ most."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The facts that it reads, of those of `sora.captions.asking.facts_of`, with a dot for each level, such as captions.original."""
        ...

    def identity(self) -> dict[str, Any]:
        """All that an answer depends on besides its request, JSON-able, such as the model, the prompt and the settings."""
        ...

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """One result for each request, in any order, as soon as it is there. Requests are taken from the iterable only as they are needed:
        taking one decodes a clip. An error of a request is its result's; an exception ends the job."""
        ...

    def close(self) -> None:
        """End what the captioner has started."""
        ...
