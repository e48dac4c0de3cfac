"""The stages `probe` and `cuts` of a video, and `clips` of a dataset's shard: what there is to score, as a table of clips."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sora.curation.inputs import Unit
from sora.curation.result_forms import POSITIVE, ResultForm
from sora.curation.results import CurationStage
from sora.curation.spans import CutDetector, Span, Transition, check_lengths, parts_of
from sora.data.index.index import Index
from sora.safety.claims import claims_of
from sora.video.files import LIMITS, PYAV, VideoInfo, probe, settled, stream

PROBED = pa.schema(
    [
        *((name, pa.int64()) for name in ("frames", "height", "width", "bytes", "run")),
        *((name, pa.float64()) for name in ("fps", "duration", "pixel_aspect")),
        *((name, pa.int32()) for name in ("rotation",)),
        *((name, pa.bool_()) for name in ("mirrored", "interlaced", "wide")),
        *((name, pa.string()) for name in ("codec", "pixel_format", "colour_matrix", "colour_range", "transfer", "lacks", "claims")),
    ]
)  # the result of `probe`: one row. run: the most frames between places at which decoding can begin. claims: JSON, see `sora.safety`
CLIPS = pa.schema(
    [
        ("number", pa.int32()),
        ("key", pa.string()),
        ("first", pa.int64()),
        ("end", pa.int64()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("digest", pa.string()),
        ("reason", pa.string()),
    ]
)  # the result of `cuts` and `clips`: one row for each stretch of frames. key: of a dataset's clip, digest: the SHA-256 of its bytes.
# reason: why it is no clip, or ""
LISTED = pa.schema(
    [*CLIPS, *((name, pa.string()) for name in ("source", "licence", "consent", "origin", "video")), ("synthetic", pa.bool_())]
)
# the result of `clips`: also what the dataset's row says of where a clip is from. video: the SHA-256 of the video that it was cut from

_LEAST = {"first": 0, "end": 1, "start": -math.inf, "duration": 0, "fps": POSITIVE, "height": 1, "width": 1}


@dataclass(frozen=True)
class UnitWork:
    """A unit, and the results of the stages before for it, by the stages' names. texts: the captions of a video, if a stage needs them."""

    unit: Unit
    tables: dict[str, pa.Table] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """The stage `probe`: the facts of a video by its header and its packets, and the claims of its origin that it carries."""

    form = ResultForm(schema=PROBED, rows=1)

    def stage(self) -> CurationStage:
        return CurationStage("probe", 1, {"reader": PYAV.identity()})

    def __call__(self, work: UnitWork) -> pa.Table:
        path = Path(work.unit.path)
        info = probe(path, timeline=True)
        said: dict[str, Any] = {name: getattr(info, name) for name in PROBED.names if name not in ("bytes", "claims")}
        said |= {"bytes": path.stat().st_size, "claims": json.dumps(claims_of(path).described(), sort_keys=True)}
        return pa.table({name: [said[name]] for name in PROBED.names}, schema=PROBED)


@dataclass(frozen=True)
class Cuts:
    """The stage `cuts`: the clips of a video between changes of shot, and the parts that are none, see `parts_of`."""

    form = ResultForm(schema=CLIPS, counted=True, spans="apart", least=_LEAST, texts={"key": "^$", "digest": "^$"})
    detector: CutDetector
    trim_frames: int
    least_seconds: float
    most_seconds: float | None

    def __post_init__(self) -> None:
        check_lengths(**self._lengths())

    def _lengths(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("trim_frames", "least_seconds", "most_seconds")}

    def stage(self, probe: CurationStage) -> CurationStage:
        settings = {"detector": self.detector.identity(), **self._lengths(), "reader": PYAV.identity()}
        return CurationStage("cuts", 1, settings, (probe,))

    def __call__(self, work: UnitWork) -> pa.Table:
        path = Path(work.unit.path)
        info = probe(path, timeline=True)
        assert info.timeline is not None
        size = self.detector.size(info.height, info.width)
        found = settled(partial(self._transitions, info), path, size=size, limits=LIMITS)
        times = info.timeline.times
        parts = parts_of(times, found, **self._lengths())
        same = {"key": "", "digest": "", "fps": info.fps, "height": info.height, "width": info.width}
        return clip_table(
            [
                {"number": number, "first": part.span.first, "end": part.span.end, "start": float(times[part.span.first])}
                | {"duration": part.seconds, "reason": "" if part.fate == "clip" else part.fate, **same}
                for number, part in enumerate(parts)
            ]
        )

    def _transitions(self, info: VideoInfo, shown: stream) -> list[Transition]:
        return self.detector((picture.pixels for picture in shown), fps=info.fps)


@dataclass(frozen=True)
class ListClips:
    """The stage `clips` of a dataset's shard: its rows."""

    form = ResultForm(schema=LISTED, counted=True, spans="each", least=_LEAST, texts={"digest": "^[0-9a-f]{64}$"}, unique="key")

    def stage(self) -> CurationStage:
        return CurationStage("clips", 2)

    def __call__(self, work: UnitWork) -> pa.Table:
        index, unit = Index.open(work.unit.path), work.unit
        assert unit.shard is not None
        first = int(index.files.starts[unit.shard])
        rows = [index.row(first + place) for place in range(index.files.entries[unit.shard]["clips"])]
        return clip_table(
            [
                {"number": number, "key": row.key, "first": 0, "end": row.frames, "start": row.start, "duration": row.duration}
                | {"fps": row.fps, "height": row.height, "width": row.width, "digest": row.sha256, "reason": ""}
                | {"source": row.source, "licence": row.licence, "consent": row.consent, "synthetic": row.extra.get("synthetic") is True}
                | {"origin": _text(row.extra, "origin"), "video": _text(row.extra, "sha256_of_source")}
                for number, row in enumerate(rows)
            ],
            LISTED,
        )


def _text(extra: Mapping[str, Any], name: str) -> str:
    said = extra.get(name)
    return said if isinstance(said, str) else ""


def clip_table(rows: list[dict[str, Any]], schema: pa.Schema = CLIPS) -> pa.Table:
    return pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)


@dataclass(frozen=True)
class Footage:
    """A file, or the bytes of one, with the clips in it, each with its number. told: for messages."""

    source: Path | bytes
    told: str
    clips: list[tuple[int, Span]]
    fps: float
    height: int
    width: int


def footage(work: UnitWork) -> Iterator[Footage]:
    """The files of a unit with the clips in them: a video with all its clips, or each clip of a dataset's shard by itself."""
    if work.unit.shard is None:
        rows = [row for row in work.tables["cuts"].to_pylist() if not row["reason"]]
        if rows:
            clips = [(row["number"], Span(row["first"], row["end"])) for row in rows]
            yield Footage(Path(work.unit.path), work.unit.told, clips, *(rows[0][name] for name in ("fps", "height", "width")))
        return
    for row, content in _members(work):
        clips = [(row["number"], Span(row["first"], row["end"]))]
        yield Footage(content, f"clip {row['key']} of {work.unit.told}", clips, row["fps"], row["height"], row["width"])


def _members(work: UnitWork) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The rows of a dataset's shard with the bytes of their clips. Raises ValueError if they are of another shard."""
    index = Index.open(work.unit.path)
    assert work.unit.shard is not None
    start, rows = int(index.files.starts[work.unit.shard]), work.tables["clips"].to_pylist()
    if len(rows) != index.files.entries[work.unit.shard]["clips"]:
        raise ValueError(f"the stage clips has listed {len(rows)} clips of {work.unit.told}, which is not as it was; remove its results")
    for row in rows:
        yield row, index.read_member(start + row["number"])
