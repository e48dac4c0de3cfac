"""The end of a curation of videos: shards with an index, from the clips that were kept and made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sora.curation.deciding import decided
from sora.curation.inputs import Inputs, SourceFacts, Unit
from sora.curation.results import Results, changed
from sora.curation.running import Step
from sora.curation.scores.table import BASIC_SCORES
from sora.curation.steps.transcoding import Transcode
from sora.data.index.index import DATASET, ClipFacts, DatasetWriter
from sora.gate.texts import LIST, read_json
from sora.ingest.preparing import REPORT
from sora.ingest.sources import STREAM, Splits
from sora.system.files import whole_folder, write_json
from sora.system.locks import NAME, alone_in, short

KEY = 16  # digits of a video's hash in the keys of its clips


class NothingMade(ValueError):
    """Raised if not one of the clips that are kept could be made."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How the dataset is written. held_out: share of the videos that training does not see. licence: of videos that name none."""

    held_out: float
    shard_mb: float
    licence: str

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: give a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a dataset is made from. select: the results of the decisions, under `decision`. made: the step `transcode`."""

    inputs: Inputs
    select: Results
    decision: str
    transcode: Transcode
    made: Step

    def kept(self) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
        """The units in order, each with the rows of its kept clips; those without any are left out."""
        units = {unit.name: unit for unit in self.inputs.units}
        for name, rows in decided(self.select, self.decision, self.inputs):
            if kept := [row for row in rows if not row["rule"]]:
                yield units[name], kept

    def chunks(self) -> Iterator[tuple[Unit, Unit, list[dict[str, Any]]]]:
        """The units of `transcode`, each with its video's unit and the rows of its clips."""
        for unit, kept in self.kept():
            for chunk, clips in self.transcode.units(unit, kept):
                yield unit, chunk, clips

    def clips(self, splits: Splits) -> Iterator[tuple[ClipFacts | str, bytes]]:
        """The facts and bytes of each clip; the reason in place of the facts if it could not be made."""
        for unit, chunk, clips in self.chunks():
            rows = {row["number"]: row for row in clips}
            if (failure := self.made.lost(chunk)) is not None:
                yield from ((f"{unit.told} clip {number}: {failure.reason}", b"") for number in rows)
                continue
            left = list(rows)
            for table in self.made.groups(chunk):
                for made in table.to_pylist():
                    if left[:1] != [made["number"]]:
                        raise self._odd(chunk, f"clip {made['number']} is not the next of those that are kept")
                    left.pop(0)
                    if made["reason"]:
                        yield f"{unit.told} clip {made['number']}: {made['reason']}", b""
                        continue
                    facts = self._facts(unit, rows[made["number"]], made)
                    yield replace(facts, split=splits.of(facts)), made["media"]
            if left:
                raise self._odd(chunk, f"it lacks clip {left[0]}")

    def _odd(self, chunk: Unit, how: str) -> ValueError:
        return changed(self.made.results.path(chunk.name), how)

    def _facts(self, unit: Unit, row: dict[str, Any], made: dict[str, Any]) -> ClipFacts:
        known = self.inputs.facts.get(unit.name, SourceFacts())
        extra: dict[str, Any] = {STREAM: "copied" if made["copied"] else "encoded", "frames_of_source": [row["first"], row["end"]]}
        extra |= {"sha256_of_source": unit.name} | ({"synthetic": True} if row["synthetic"] else {})
        extra |= {"origin": known.origin} if known.origin else {}
        return ClipFacts(
            key=f"{unit.name[:KEY]}-{row['number']:05d}",
            frames=made["frames"],
            fps=made["fps"],
            height=made["height"],
            width=made["width"],
            captions=known.captions,
            source=unit.told,
            start=row["start"],
            licence=known.licence,
            consent=known.consent,
            scores={name: value for name, value in row["scores"].items() if name not in BASIC_SCORES and math.isfinite(value)},
            extra=extra,
        )


def write_dataset(folder: Path, making: Making, shards: Shards, *, identity: str, about: dict[str, Any]) -> dict[str, Any]:
    """Write the dataset, or open it if it is there already; the content of its dataset.json, with "unmade": clips that could not be made.

    identity: of all that it is made from.

    Raises:
        LockHeld: another process writes it at this moment.
        NothingMade: not one clip could be made.
        ValueError: there is another dataset.
    """
    with alone_in(folder.parent, f"writing {folder.name} in", name=f"{NAME}-writing-{short(folder.name)}", advice="it does the rest"):
        if (folder / DATASET).is_file():
            return _opened(folder, identity)
        return _written(folder, making, shards, about | {"identity": identity})


def _opened(folder: Path, identity: str) -> dict[str, Any]:
    said = read_json(folder / DATASET, limit=LIST)
    if said.get("about", {}).get("identity") != identity:
        raise ValueError(f"{folder} is a dataset of other clips or settings; name another with dataset=NAME, or remove it")
    return said | {"unmade": read_json(folder / REPORT, limit=LIST)["unmade"]}


def _written(folder: Path, making: Making, shards: Shards, about: dict[str, Any]) -> dict[str, Any]:
    splits = Splits(shards.held_out, "video")
    splits.settle(ClipFacts(f"{unit.name[:KEY]}-0", 1, 1.0, 1, 1, source=unit.told) for unit, _ in making.kept())
    unmade: list[str] = []
    with whole_folder(folder) as staging:
        with DatasetWriter(staging, licence=shards.licence, max_bytes=int(shards.shard_mb * 2**20)) as writer:
            for facts, media in making.clips(splits):
                if isinstance(facts, str):
                    unmade.append(facts)
                else:
                    writer.write(facts, media)
            if not writer.rows:
                raise NothingMade(f"not one of the clips that are kept could be made{f': {unmade[0]}' if unmade else ''}")
            described = writer.finish(
                about,
                before=lambda said: write_json(staging / REPORT, {"clips": writer.rows, "splits": said["splits"], "unmade": unmade}),
            )
    return described | {"unmade": unmade}
