"""The stages `score_NAME`: scores of clips by a model, one stage for each, so that another model repeats none of the others; and the stage
`embed_NAME`: vectors of clips by a model, by which `duplicates` compares them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sora.curation.inputs import Inputs, SourceFacts, Unit
from sora.curation.result_forms import ResultForm
from sora.curation.results import CurationStage, hashed
from sora.curation.running import own_name
from sora.curation.scores.scorer import Embedder, FrameScorer
from sora.curation.spans import Span
from sora.curation.steps.finding import Footage, UnitWork, footage
from sora.data.index.index import Index
from sora.video.files import LIMITS, PYAV, settled, stream


@dataclass(frozen=True)
class ModelScoring:
    """The stage of one scorer. name: of its option, after which the stage is called."""

    name: str
    scorer: FrameScorer

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its scores."""
        return tuple(self.scorer.names)

    @property
    def form(self) -> ResultForm:
        scores = [(name, pa.float64()) for name in self.names]
        return ResultForm(schema=pa.schema([("number", pa.int32()), *scores, ("reason", pa.string())]), lacking=self.names)

    def stage(self, listing: CurationStage) -> CurationStage:
        return CurationStage(f"score_{self.name}", 1, {"scorer": self.scorer.identity(), "reader": PYAV.identity()}, (listing,))

    def named(self, inputs: Inputs) -> Callable[[Unit], str]:
        """The name of a unit's result: it covers the captions, where the scorer needs them."""
        if not self.scorer.needs_text:
            return own_name
        captions = "" if inputs.dataset is None else Index.open(inputs.dataset).captions_fingerprint
        return lambda unit: hashed(unit.name, captions, list(texts_of(inputs, unit)))

    def __call__(self, work: UnitWork) -> pa.Table:
        texts = _texts(work) if self.scorer.needs_text else {}
        rows = [self._row(part, number, span, texts.get(number)) for part in footage(work) for number, span in part.clips]
        schema = self.form.schema
        return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)

    def _row(self, part: Footage, number: int, span: Span, text: str | None) -> dict[str, Any]:
        try:
            found = self.scorer(_frames(self.scorer, part, span), text=text)
        except ValueError as error:
            return {"number": number, "reason": f"unreadable: {error}"}
        if set(found) != set(self.scorer.names):
            raise ValueError(f"the scorer {self.name} gives {', '.join(found)} and says that its scores are {', '.join(self.scorer.names)}")
        return {"number": number, **found, "reason": ""}


EMBEDDED = pa.schema([("number", pa.int32()), ("embedding", pa.binary()), ("reason", pa.string())])
# one row for each clip. embedding: float32 numbers, as many for every clip. reason: why it has none, or ""


@dataclass(frozen=True)
class Embedding:
    """The stage of a scorer that gives embeddings. name: of its option, after which the stage is called."""

    form = ResultForm(schema=EMBEDDED, lacking=["embedding"])
    name: str
    scorer: FrameScorer

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, Embedder):
            raise ValueError(f"duplicates.embeddings={self.name}: this scorer gives scores and no embeddings; clip gives them")

    def stage(self, listing: CurationStage) -> CurationStage:
        return CurationStage(f"embed_{self.name}", 1, {"scorer": self.scorer.identity(), "reader": PYAV.identity()}, (listing,))

    def __call__(self, work: UnitWork) -> pa.Table:
        rows = [self._row(part, number, span) for part in footage(work) for number, span in part.clips]
        return pa.table({name: [row[name] for row in rows] for name in EMBEDDED.names}, schema=EMBEDDED)

    def _row(self, part: Footage, number: int, span: Span) -> dict[str, Any]:
        assert isinstance(self.scorer, Embedder)
        try:
            vector = np.asarray(self.scorer.embed(_frames(self.scorer, part, span)), "<f4")
            if vector.ndim != 1 or not np.isfinite(vector).all():
                raise ValueError(f"the scorer {self.name} gives an embedding of shape {vector.shape} that is no vector of finite numbers")
        except ValueError as error:
            return {"number": number, "embedding": None, "reason": f"unreadable: {error}"}
        return {"number": number, "embedding": vector.tobytes(), "reason": ""}


def _frames(scorer: FrameScorer, part: Footage, span: Span) -> np.ndarray:
    """The frames of a clip that a scorer takes."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # there are as many processes as cores
    wanted = [span.first + place for place in scorer.frames(len(span))]
    size = scorer.size(part.height, part.width)
    return settled(partial(_taken, wanted=wanted), part.source, first=wanted[0], size=size, limits=LIMITS, name=part.told)


def _taken(shown: stream, *, wanted: list[int]) -> np.ndarray:
    """The frames of these numbers, of a stream that begins with the first of them."""
    left, frames = set(wanted), list[np.ndarray]()
    for number, picture in enumerate(shown, wanted[0]):
        if number in left:
            frames.append(picture.pixels)
        if number == wanted[-1]:
            break
    if len(frames) < len(wanted):
        raise ValueError(f"only {len(frames)} of {len(wanted)} frames decode ({shown.report})")
    return np.stack(frames)


def texts_of(inputs: Inputs, unit: Unit) -> tuple[str, ...]:
    """The captions of a video."""
    return tuple(one.text for one in inputs.facts.get(unit.name, SourceFacts()).captions)


def _texts(work: UnitWork) -> dict[int, str]:
    """The first caption of each clip that has one, by the clip's number."""
    if work.unit.shard is None:
        numbers = work.tables["cuts"]["number"].to_pylist() if work.texts else []
        return dict.fromkeys(numbers, work.texts[0] if work.texts else "")
    index = Index.open(work.unit.path)
    start = int(index.files.starts[work.unit.shard])
    said = {number: index.captions(start + number) for number in work.tables["clips"]["number"].to_pylist()}
    return {number: captions[0].text for number, captions in said.items() if captions}
