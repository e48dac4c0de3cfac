"""A recaptioning: every clip of a dataset is asked for, each answer is kept as it comes, and the captions become a set beside the index.

    WORK/NAME/rows-000000.parquet       a row for each clip of a shard: captions or the reason why there are none, and what they cost
    WORK/answers/<hash>/<job>.answers   every answer, by what was asked (`sora.captions.journal`)
    DATASET/captions-NAME…              the set (`sora.data.index.keyed_sets`), in force once every clip is answered or has a reason

The same command goes on after anything. Answers are never asked for twice, failures only with `retry`. Several jobs share the shards, and
whichever ends last finishes the set. A set that is finished is never changed, since runs pin it: what `retry` adds later is one of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sora.captions.asking import AskedClip, Namer, facts_of, only
from sora.captions.captioner import KINDS, Captioner, CaptionRequest, CaptionResult
from sora.captions.frames import FrameTaking
from sora.captions.journal import AnswerJournal
from sora.captions.rows import captioned_rows, path_of, write_captioned
from sora.captions.taking import TakeFrames, TakenFrames
from sora.data.index.index import Index
from sora.data.index.keyed_sets import CAPTION_SETS, NAME
from sora.data.index.rows import Caption
from sora.data.index.set_writers import CaptionSetWriter
from sora.data.index.units import WHOLE, JobPart, refuse_other_counts
from sora.data.shards.stores import open_store
from sora.ingest.tree import Run
from sora.system.locks import alone_in
from sora.system.terminal import counted

Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
ANSWERS = "answers"  # in WORK
_AGAIN = "_again"  # what the name of a set ends with that holds what was answered at a later try


@dataclass(frozen=True, kw_only=True)
class RecaptionSettings:
    """What a set of captions depends on besides the captioner. kinds: of the captions that it gets, of `KINDS`. passes: 2 asks for a second
    opinion of every clip, which only a check reads. max_failed: the largest share of clips without a caption with which a set is finished.
    """

    taking: FrameTaking
    kinds: Sequence[str]
    passes: int
    max_failed: float

    def __post_init__(self) -> None:
        if not self.kinds or (unknown := [kind for kind in self.kinds if kind not in KINDS]):
            raise ValueError(f"kinds={list(self.kinds)} holds {unknown[0] if self.kinds else 'nothing'}; there are {', '.join(KINDS)}")
        if self.passes not in (1, 2):
            raise ValueError(f"passes={self.passes} is neither 1 nor 2")


@dataclass
class Recaptioned:
    """What a recaptioning has come to. clips, failed: of all parts, and those without a caption; 0 until all are settled. asked: requests
    that this job sent. known: answers that were there. dropped: torn lines of the journal. waiting: what is left to do before the set is
    finished; "" if it is. sets: the names of the finished sets of these captions."""

    name: str
    clips: int = 0
    failed: int = 0
    asked: int = 0
    known: int = 0
    dropped: int = 0
    waiting: str = ""
    sets: list[str] = field(default_factory=list)


class Recaption:
    """Captions the clips of a dataset's index. engine: maps a function over items in guarded processes.

    name: of the set (None: the captioner's, and a hash of all that the captions depend on). part: this job's share of the shards. retry:
    whether what failed is asked for again.
    """

    def __init__(
        self,
        index: Index,
        captioner: Captioner,
        settings: RecaptionSettings,
        *,
        name: str | None,
        work: Path,
        engine: Run,
        part: JobPart = WHOLE,
        retry: bool = False,
    ) -> None:
        self.index, self.captioner, self.settings, self.engine, self.part, self.retry = index, captioner, settings, engine, part, retry
        self.namer = Namer(captioner)
        self.about: dict[str, Any] = {
            "captioner": captioner.identity(),
            "frames": settings.taking.identity(),
            "kinds": list(settings.kinds),
            "clips": index.fingerprint,
        }
        self.name = name or _named(captioner.name, self.about)
        if not NAME.fullmatch(self.name):
            raise ValueError(f"set={self.name} is no name for a set of captions; use up to 64 lower case letters, digits and '_'")
        self.work, self.rows = work, work / self.name
        self.journal_folder = work / ANSWERS / self.namer.hash[:16]
        self.shards = [number for number in range(len(index.described["shards"])) if len(index.rows_of_shard(number))]

    def run(self, counting: Counting) -> Recaptioned:
        """Do what is left to do.

        Raises:
            ValueError: settings do not fit what is there.
            ConnectionError: the captioner's server is gone; what is done is saved.
        """
        done = Recaptioned(self.name)
        target = self._target()
        with ExitStack() as held:
            name = f".lock-{self.part.number}-of-{self.part.of_all}"
            held.enter_context(alone_in(self.rows, f"captioning part {self.part} into", name=name, advice="wait for it or stop it"))
            refuse_other_counts(self.rows, self.part, name=".lock", doing="captioning")
            writer = None if target is None else CaptionSetWriter(self.index.folder, target, **self._given())
            mine = [shard for shard in self.part.some(self.shards).values() if self._is_left(shard, writer)]
            if writer is not None and mine:
                self._caption(mine, writer, counting, done)
            if writer is not None:
                self._finish(writer, done)
        done.sets = [name for name in CAPTION_SETS.names(self.index.folder) if name == self.name or name.startswith(self.name + _AGAIN)]
        return done

    def _given(self) -> dict[str, Any]:
        return {"dataset": self.index.dataset_fingerprint, "settings": self.about}

    def _target(self) -> str | None:
        """The name of the set to write: None if it is finished and nothing is tried again. Raises ValueError if it is another set."""
        folder, named = self.index.folder, self.name
        if not CAPTION_SETS.manifest(folder, named).exists():
            return named
        said = CAPTION_SETS.described(folder, named, dataset=self.index.dataset_fingerprint)
        if said.get("settings") != self.about:
            raise ValueError(f"set={named} is of other settings, in {folder}; name another with set=NAME, or leave set= out")
        if not self.retry:
            return None
        if self.part.of_all > 1:
            raise ValueError(f"set={named} is finished: give retry=failed without part=, since few clips are left")
        number = 1
        while CAPTION_SETS.manifest(folder, name := f"{named}{_AGAIN}{number}").exists():
            number += 1
        return name

    def _is_left(self, shard: int, writer: CaptionSetWriter | None) -> bool:
        """Whether a shard has something to ask for."""
        if writer is None:
            return False
        if not path_of(self.rows, shard).is_file() or (writer.name == self.name and shard not in writer.written()):
            return True
        return self.retry and any(row["reason"] for row in captioned_rows(self.rows, shard, ["reason"]))

    def _caption(self, shards: Sequence[int], writer: CaptionSetWriter, counting: Counting, done: Recaptioned) -> None:
        total = sum(len(self.index.rows_of_shard(shard)) for shard in shards)
        journal = AnswerJournal(self.journal_folder)
        done.dropped = journal.dropped
        try:
            with counting("clips", total) as report:
                saved = _Saved(self, writer, shards, report)
                work = CaptionWork(self, journal, settled=saved)
                try:
                    work.run(row for shard in shards for row in self.index.rows_of_shard(shard))
                finally:
                    done.asked, done.known = work.asked, work.known
        finally:
            journal.close()

    def _finish(self, writer: CaptionSetWriter, done: Recaptioned) -> None:
        """Put the set in force if every clip of every part is settled."""
        left = [shard for shard in self.shards if not path_of(self.rows, shard).is_file()]
        if writer.name == self.name:
            left = sorted({*left, *(set(self.shards) - set(writer.written()))})
        if left:
            done.waiting = f"{len(left)} of {counted(len(self.shards), 'shard')}"
            return
        reasons = [row["reason"] for shard in self.shards for row in captioned_rows(self.rows, shard, ["reason"])]
        done.clips, done.failed = len(reasons), sum(map(bool, reasons))
        if writer.name == self.name and done.failed and (done.failed == done.clips or done.failed > self.settings.max_failed * done.clips):
            more = f", more than max_failed={self.settings.max_failed:g}" if done.failed < done.clips else ""
            done.waiting = f"{done.failed} of {counted(done.clips, 'clip')} have no caption{more}: retry=failed asks for these again"
            return
        with alone_in(self.index.folder, "finishing captions in", name=f".lock-captions-{self.name}", patience=60.0):
            if not CAPTION_SETS.manifest(self.index.folder, writer.name).exists() and writer.written():
                said = {"command": "recaption", "captioner": self.captioner.name, "failed": done.failed, "clips": done.clips}
                writer.finish(said)


def _named(captioner: str, about: dict[str, Any]) -> str:
    """A name for a set: of the captioner, and of all that its captions depend on."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode()).hexdigest()
    words = re.sub(r"[^a-z0-9]+", "_", captioner.rpartition("/")[2].lower()).strip("_")[:40] or "captioner"
    return f"{words}_{digest[:8]}"


class _Saved:
    """Callable that takes clips as they are settled, and writes a shard when all of its clips are."""

    def __init__(self, job: Recaption, writer: CaptionSetWriter, shards: Sequence[int], report: Callable[[int], None]) -> None:
        self._job, self._writer, self._report = job, writer, report
        self._left = {shard: len(job.index.rows_of_shard(shard)) for shard in shards}
        self._clips: defaultdict[int, list[AskedClip]] = defaultdict(list)
        self._done = 0

    def __call__(self, clip: AskedClip) -> None:
        shard = self._job.index.shard(clip.row)
        self._clips[shard].append(clip)
        self._left[shard] -= 1
        self._done += 1
        self._report(self._done)
        if not self._left[shard]:
            self._write(shard, self._clips.pop(shard))

    def _write(self, shard: int, clips: list[AskedClip]) -> None:
        job, said = self._job, dict[str, list[Caption]]()
        before = self._before(shard)
        for clip in sorted(clips, key=lambda clip: clip.row):
            if (fields := clip.fields()) is not None and clip.key not in before:
                texts = fields.texts()
                said[clip.key] = [Caption(kind, texts[kind], job.captioner.name) for kind in job.settings.kinds if kind in texts]
        if said or self._writer.name == job.name:
            self._writer.write(shard, said)
        write_captioned(job.rows, shard, clips)  # last: it says that the shard is done

    def _before(self, shard: int) -> set[str]:
        """The clips that have captions already in the finished set, where this one only adds to it."""
        if self._writer.name == self._job.name:
            return set()
        return {row["key"] for row in captioned_rows(self._job.rows, shard, ["key", "reason"]) if not row["reason"]}


class CaptionWork:
    """Asks for the captions of clips, first of all whole clips and stretches, then of long clips from the captions of their stretches.

    settled: called with each clip for which nothing is left to ask. A failure is kept once a later request succeeds, or at the end: those
    right before a server is given up may be its fault, and are asked for again.
    """

    def __init__(self, job: Recaption, journal: AnswerJournal, *, settled: Callable[[AskedClip], None]) -> None:
        self.asked = self.known = 0
        self._job, self._journal, self._settled = job, journal, settled
        self._clips: dict[int, AskedClip] = {}
        self._waiting: defaultdict[str, list[int]] = defaultdict(list)  # rows, by the name of the request that they wait for
        self._failed: list[CaptionResult] = []
        self._summaries: list[CaptionRequest] = []

    def run(self, rows: Iterable[int]) -> None:
        """Ask for the captions of these rows."""
        self._take(self._requests(rows))
        summaries, self._summaries = self._summaries, []
        self._take(iter(summaries))

    def _take(self, requests: Iterator[CaptionRequest]) -> None:
        for result in self._job.captioner(requests):
            if result.cut:
                continue
            if result.fields is None:
                self._failed.append(result)
                continue
            self._keep_failures()
            self._keep(result)
        self._keep_failures()

    def _keep_failures(self) -> None:
        failed, self._failed = self._failed, []
        for result in failed:
            self._keep(result)

    def _keep(self, result: CaptionResult) -> None:
        if self._journal.has(result.id):  # a failure before: what it cost is not forgotten
            before = self._journal.get(result.id)
            spent = {name: getattr(before, name) + getattr(result, name) for name in ("attempts", "tokens_in", "tokens_out")}
            result = replace(result, **spent)
        self._journal.put(result)
        for row in self._waiting.pop(result.id, ()):
            self._answered(row, result)

    def _answered(self, row: int, result: CaptionResult) -> None:
        clip = self._clips[row]
        clip.answers[result.id] = result
        for number in clip.ids:
            if (windows := clip.ready(number)) is not None:
                given: dict[str, Any] = {"key": clip.key, "facts": clip.facts, "pass_number": number}
                request = self._job.namer.summary(windows, **given)
                clip.summaries[number] = request.id
                if self._asks(row, request.id):
                    self._summaries.append(request)
        if row in self._clips and clip.settled:
            self._settle(clip)

    def _settle(self, clip: AskedClip) -> None:
        del self._clips[clip.row]
        self._settled(clip)

    def _asks(self, row: int, name: str) -> bool:
        """Whether a request is to be sent. One that is answered already answers the clip; one that is on its way will."""
        if name in self._waiting:
            self._waiting[name].append(row)
            return False
        if self._journal.has(name, failed=not self._job.retry):
            self.known += 1
            self._answered(row, self._journal.get(name))
            return False
        self._waiting[name].append(row)
        self.asked += 1
        return True

    def _requests(self, rows: Iterable[int]) -> Iterator[CaptionRequest]:
        job = self._job
        take = TakeFrames(job.index, job.settings.taking, even=job.captioner.even_frames)
        for done in job.engine(take, self._items(rows)):
            row: int = done.item[0]
            clip = self._clips[row]
            if done.result is None:
                clip.reason = f"its frames could not be taken: {done.reason}"
                self._settle(clip)
                continue
            yield from self._of_clip(clip, done.result)

    def _items(self, rows: Iterable[int]) -> Iterator[tuple[int, bytes | None]]:
        """What the processes are given: the row, and the bytes of a clip that lies elsewhere, since they open no connections."""
        index, remote = self._job.index, open_store(self._job.index.folder).remote
        for row in rows:
            self._clips[row] = AskedClip(row, index.key(row), only(facts_of(index, row), self._job.captioner.reads))
            try:
                content = index.read_member(row) if remote else None
            except (ValueError, ConnectionError) as error:
                self._clips[row].reason = f"its bytes could not be read: {error}"
                self._settle(self._clips[row])
                continue
            yield row, content

    def _of_clip(self, clip: AskedClip, taken: Sequence[TakenFrames]) -> Iterator[CaptionRequest]:
        namer, facts = self._job.namer, clip.facts
        clip.windows = [(one.start, one.end) for one in taken]
        clip.times = [time for one in taken for time in one.times]
        passes = [[namer.request(one, key=clip.key, facts=facts, pass_number=number) for one in taken] for number in range(self._passes)]
        clip.ids = {number: [request.id for request in requests] for number, requests in enumerate(passes)}
        for request in (request for requests in passes for request in requests):
            if clip.row in self._clips and request.id not in clip.answers and self._asks(clip.row, request.id):
                yield request

    @property
    def _passes(self) -> int:
        return self._job.settings.passes
