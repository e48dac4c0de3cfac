"""The stage `scores`: the cheap scores of each clip, its signature for finding copies, and small stills for the page, in one decoding."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from sora.curation.result_forms import ResultForm
from sora.curation.results import CurationStage
from sora.curation.scores.cheap import analysis_size, cheap_identity, cheap_scores
from sora.curation.scores.table import CHEAP_SCORES
from sora.curation.spans import Span
from sora.curation.steps.finding import Footage, UnitWork, footage
from sora.video.files import LIMITS, PYAV, Shown, settled, stream

STILLS = ("first", "middle", "last")  # frames of a clip that are kept as small pictures
_SIDE, _QUALITY = 112, 80  # of stills: pixels of the longer side, and JPEG's
SIGNATURE = ("signature_hashes", "signature_pictures", "signature_aspect")
SCORED = pa.schema(
    [
        ("number", pa.int32()),
        *((name, pa.float64()) for name in CHEAP_SCORES),
        ("signature_hashes", pa.binary()),
        ("signature_pictures", pa.binary()),
        ("signature_aspect", pa.float64()),
        *((f"still_{name}", pa.binary()) for name in STILLS),
        ("reason", pa.string()),
    ]
)  # one row for each clip. reason: why it has no scores, or ""


@dataclass(frozen=True)
class CheapScoring:
    """The stage `scores`."""

    names = tuple(CHEAP_SCORES)
    form = ResultForm(schema=SCORED, lacking=[name for name in SCORED.names if name not in ("number", "reason")])

    def stage(self, listing: CurationStage) -> CurationStage:
        return CurationStage("scores", 1, {"reader": PYAV.identity(), "scores": cheap_identity()}, (listing,))

    def __call__(self, work: UnitWork) -> pa.Table:
        rows = [row for part in footage(work) for row in _scored(part)]
        return pa.table({name: [row.get(name) for row in rows] for name in SCORED.names}, schema=SCORED)


def _scored(part: Footage) -> list[dict[str, Any]]:
    try:
        size = analysis_size(part.height, part.width)
        return settled(partial(_rows, part), part.source, size=size, limits=LIMITS, name=part.told)
    except ValueError as error:
        return [{"number": number, "reason": f"unreadable: {error}"} for number, _ in part.clips]


def _rows(part: Footage, shown: stream) -> list[dict[str, Any]]:
    """The rows of a video's clips. Clips whose frames are missing or damaged get a reason instead of scores."""
    watched = _Watched(shown, [span for _, span in part.clips])
    rows: list[dict[str, Any]] = []
    measured = cheap_scores(watched, [span for _, span in part.clips], fps=part.fps)
    for number, span in part.clips:
        try:
            found = next(measured)
        except (StopIteration, ValueError):  # the video ended before its packets said it would; a generator that raised has ended
            rows.append({"number": number, "reason": f"unreadable: its frames {span.first} to {span.end} do not decode ({shown.report})"})
            continue
        bad = watched.bad.get(span, 0)
        if bad:
            rows.append({"number": number, "reason": f"damaged: {bad} of its {len(span)} frames are corrupt, or follow a loss"})
            continue
        signature = dict(zip(SIGNATURE, found.signature.columns(), strict=True))
        stills = {f"still_{name}": watched.stills[span, name] for name in STILLS}
        rows.append({"number": number, **found.scores, **signature, **stills, "reason": ""})
    return rows


class _Watched:
    """Passes frames on, keeps stills of each span, and counts its damaged frames."""

    def __init__(self, shown: stream, spans: Sequence[Span]) -> None:
        self._shown, self._spans = shown, list(spans)
        self.stills: dict[tuple[Span, str], bytes] = {}
        self.bad: dict[Span, int] = {}

    def __iter__(self) -> Iterator[Shown]:
        place = 0
        for number, frame in enumerate(self._shown):
            while place < len(self._spans) and number >= self._spans[place].end:
                place += 1
            if place < len(self._spans) and number >= self._spans[place].first:
                self._see(self._spans[place], number, frame)
            yield frame

    def _see(self, span: Span, number: int, frame: Shown) -> None:
        if not frame.good:
            self.bad[span] = self.bad.get(span, 0) + 1
        for name, wanted in zip(STILLS, (span.first, (span.first + span.end) // 2, span.end - 1), strict=True):
            if number == wanted:
                self.stills[span, name] = small_jpeg(frame.pixels)


def small_jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A frame as a small JPEG."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
