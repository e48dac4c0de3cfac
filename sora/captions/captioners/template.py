"""Captions put together from what is known of a clip, without a model: for tests, for worlds that know their truth, and as a baseline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sora.captions.captioner import CaptionRequest, CaptionResult
from sora.captions.wording import inert

_PLACE = re.compile(r"\{([a-z0-9_.]+)\}")


class TemplateCaptioner:
    """A captioner that fills in {NAME} in two sentences. A clip of which a name is not known gets an error.

    name: who is said to write. short, dense: sentences with names of facts: seconds, fps, height, width, captions.KIND, scores.NAME,
    extra.NAME, with a dot for each level, such as {captions.original} or {extra.facts.background}. A number is written with three digits.
    """

    even_frames = False

    def __init__(self, *, name: str, short: str, dense: str) -> None:
        self.name, self.sentences = name, {"short": short, "dense": dense}
        self.reads = tuple(sorted({place for sentence in self.sentences.values() for place in _PLACE.findall(sentence)}))

    def identity(self) -> dict[str, Any]:
        return {"template": 1, "name": self.name, **self.sentences}

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        for request in requests:
            try:
                if request.windows:  # each says the same of the whole clip
                    found = request.windows[0].fields, ()
                else:
                    found = inert({kind: _filled(sentence, request.facts) for kind, sentence in self.sentences.items()})
            except ValueError as error:
                yield CaptionResult(id=request.id, error=str(error), attempts=1)
                continue
            yield CaptionResult(id=request.id, fields=found[0], notes=found[1])

    def close(self) -> None:
        """Do nothing: nothing was started."""


def _filled(sentence: str, facts: Mapping[str, Any]) -> str:
    """A sentence with the facts in their places. Raises ValueError for one that is not known."""

    def fact(found: re.Match[str]) -> str:
        value: Any = facts
        for name in found[1].split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
            raise ValueError(f"{{{found[1]}}} of captioner.short or captioner.dense is not known of this clip")
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return _PLACE.sub(fact, sentence)
