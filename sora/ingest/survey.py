"""Makes rows for shards that others made: any WebDataset of videos or images with captions in `json`, `txt` or similar members.

The shards are only read. Every sample becomes a row or a `Refusal` with its shard, key and reason; bytes of a shard that belong to no
sample become refusals too, so that every loss is recorded. Videos are opened in guarded processes, one at a time in each.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from sora.data.index.rows import Caption, ClipFacts, ClipRow, clip_row
from sora.data.shards.shards import KEY, Member
from sora.data.shards.stores import Store
from sora.data.shards.tar_reader import ByteFile, TarWalk, sample_of, told
from sora.gate.forms import Fields
from sora.gate.forms import text as text_form
from sora.ingest.clip_texts import WORDS, CaptionWords, Said, joined, said_in
from sora.system.guarded_pool import Outcome
from sora.video.demuxing.kinds import HEAD, IMAGE_SUFFIXES, VIDEO_SUFFIXES, kind_of
from sora.video.files import probe_apart as probe

MOST_TOLD, MOST_HELD = 1 << 20, 256 << 20  # bytes of one json or txt, and of all of a shard, in memory until its end
_UNIT, _UNIT_BYTES = 16, 64 << 20  # clips that a process reads before it answers
_MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES


class Refusal(NamedTuple):
    """A sample that gives no clip. kind: one word to count by. key: of the sample, or the position in the shard."""

    shard: str
    key: str
    kind: str
    reason: str


REFUSAL = Fields(dict.fromkeys(Refusal._fields, text_form), closed=True)  # the form of a line of refused.jsonl


class Sample(NamedTuple):
    """A video in a shard with the fields of `ClipFacts` from its texts."""

    shard: str
    key: str
    name: str  # the shard's own name for it
    suffix: str
    offset: int
    size: int
    facts: dict[str, Any]


@dataclass
class Survey:
    """The samples of a shard, by its headers and texts. notes: counts of oddities that lose nothing. stamp: the shard's state."""

    shard: str
    size: int
    samples: list[Sample] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    stamp: str = ""

    def note(self, said: Said) -> None:
        """Count texts and keys that might be captions and are not used as such."""
        self.notes["captions that are empty"] += said.empty
        self.notes.update(f"keys that are not read as captions ({told(key.encode())}); captions.keys names them" for key in said.unread)


@dataclass(frozen=True)
class Choices:
    """How shards are read: the settings of conf/data.yaml.

    video: the suffix of the member that is the video or image; None for the only video, else the only image. In a sample without a member
    of a usual name, members are recognised by their bytes. need_captions: refuse samples without captions. key_with_shard: keys begin with
    the shard's name, for datasets whose shards all count from 0. held_out: share of the clips in the split "heldout", by the hash of their
    source or key. most_mb: of one clip. words: which members hold captions, and where.
    """

    video: str | None = None
    need_captions: bool = False
    key_with_shard: bool = False
    held_out: float = 0.0
    most_mb: float = 1024
    words: CaptionWords = WORDS


def survey(store: Store, shard: str, choices: Choices) -> Survey:
    """Walk one shard and return its samples in the order of their first members; members that cannot be used are recorded as refusals."""
    stamp = store.stamp(shard)  # taken before reading, so that a later change gives another stamp
    try:
        file, size = store.open(shard)
    except ValueError as error:
        return Survey(shard, 0, refused=[Refusal(shard, "", "shard", str(error))], stamp=stamp)
    with closing(file):
        try:
            found = survey_file(file, size, shard, choices)
        except ConnectionError:  # the fault of the server, not of this shard
            raise
        except OSError as error:
            why = f"{store.place(shard)} cannot be read: {error.strerror or error}"
            found = Survey(shard, size, refused=[Refusal(shard, "", "shard", why)])
    return replace(found, stamp=stamp)


def survey_file(file: ByteFile, size: int, shard: str, choices: Choices) -> Survey:
    """Return the `survey` of an open file."""
    found = Survey(shard, size)
    walk = TarWalk(file, size=size)
    members: dict[str, dict[str, tuple[int, int]]] = {}
    texts: dict[str, dict[str, bytes]] = defaultdict(dict)
    unnamed: dict[str, list[str]] = defaultdict(list)  # videos and images without a usual suffix
    twice: Counter[str] = Counter()
    last, apart, held = None, set(), 0
    try:
        for name, offset, length in walk:
            parts = sample_of(name)
            if parts is None:
                found.notes["members without a suffix"] += 1
                continue
            key, suffix = parts
            if key in members and key != last:
                apart.add(key)
            last = key
            own = members.setdefault(key, {})
            if suffix in own:
                twice[key] += 1
                continue
            own[suffix] = (offset, length)
            if choices.words.may_tell(suffix) and length <= min(MOST_TOLD, MOST_HELD - held):
                texts[key][suffix], held = walk.content(), held + length
            elif suffix.rpartition(".")[2] not in _MEDIA and kind_of(walk.head(HEAD)).read:
                unnamed[key].append(suffix)
    except ValueError as error:
        found.refused.append(Refusal(shard, "", "shard", str(error)))
    found.refused += [Refusal(shard, key, "duplicate", f"{count} more members of names that came before") for key, count in twice.items()]
    found.refused += [Refusal(shard, trouble.place, trouble.kind, trouble.reason) for trouble in walk.troubles]
    found.notes["samples whose members do not lie together"] += len(apart)
    usual = _usual(members, choices.words) if walk.troubles else set()
    for key, own in members.items():
        made = _sample(found, key, own, texts.get(key, {}), videos_of(own, unnamed.get(key, []), choices.video), usual, choices)
        if isinstance(made, Sample):
            found.samples.append(made)
        else:
            found.refused.append(made)
    return found


def told_of(suffix: str, members: Iterable[str], words: CaptionWords) -> str | None:
    """The kind of the captions in a sample's member "txt", "dense.txt" or, if `members` has an mp4, "mp4.txt"; None if it holds none.

    WebDataset splits a video's name 0.5.mp4 into the key 0 and the suffix 5.mp4; the suffix of its caption is then 5.txt.
    """
    begun = [*members, *_middles(members)]
    return words.told_by(next((suffix.removeprefix(f"{one}.") for one in begun if suffix.startswith(f"{one}.")), suffix))


def _middles(members: Iterable[str]) -> list[str]:
    """The part of the suffix before its last dot, for a sample with exactly one video or image: `b.c` of b.c.mp4."""
    parts = [suffix.rpartition(".") for suffix in members]
    found = [middle for middle, _, last in parts if last in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    return [middle for middle in found if middle] if len(found) == 1 else []


def _usual(members: dict[str, dict[str, Any]], words: CaptionWords) -> set[str]:
    """The suffixes that more than half of the samples have: in a damaged shard, a sample without one of them has lost it."""
    counts = Counter(suffix for own in members.values() for suffix in own)
    return {suffix for suffix, count in counts.items() if count * 2 > len(members) or (len(members) <= 2 and words.told_by(suffix))}


def videos_of(own: Iterable[str], unnamed: list[str], video: str | None) -> list[str]:
    """The members that may be a sample's video; images only if it has none, since an image beside a video is its cover."""
    if video is not None:
        return [suffix for suffix in own if suffix == video]
    for names in (VIDEO_SUFFIXES, IMAGE_SUFFIXES):
        if found := [suffix for suffix in own if suffix.rpartition(".")[2] in names]:
            return found
    return unnamed


def _sample(
    found: Survey,
    name: str,
    own: dict[str, tuple[int, int]],
    texts: dict[str, bytes],
    videos: list[str],
    usual: set[str],
    choices: Choices,
) -> Sample | Refusal:
    shard = found.shard
    lost = sorted(usual - set(own))
    if lost:
        return Refusal(shard, name, "incomplete", f"the shard is damaged, and the sample has no {', '.join(lost)} as the others have")
    if len(videos) != 1:
        kinds = ", ".join(sorted(own)[:5])
        why = f"{len(videos)} videos or images, choose one with video=" if videos else "no video and no image"
        return Refusal(shard, name, "video", f"the sample has {why} (its members: {kinds})")
    offset, size = own[videos[0]]
    if size > choices.most_mb * 2**20:
        return Refusal(shard, name, "size", f"its video has {size} bytes, more than most_mb={choices.most_mb:g} allows")
    try:
        facts = _said(found, own, texts, choices.words)
    except ValueError as error:
        return Refusal(shard, name, "text", str(error))
    if not facts["captions"]:
        if choices.need_captions:
            return Refusal(shard, name, "caption", "the sample has no caption")
        found.notes["clips without a caption"] += 1
    others = {suffix for suffix in own if suffix != videos[0] and not told_of(suffix, own, choices.words)}
    for suffix in others:
        found.notes[f"members that are not read (.{told(suffix.encode())})"] += 1
    return Sample(shard, key_of(name, shard if choices.key_with_shard else None), name, videos[0], offset, size, facts)


def _said(found: Survey, own: dict[str, tuple[int, int]], texts: dict[str, bytes], words: CaptionWords) -> dict[str, Any]:
    for suffix, (_, size) in own.items():
        if told_of(suffix, own, words) and suffix not in texts:
            raise ValueError(
                f"its {suffix} has {size} bytes, too many to read: of one text {MOST_TOLD:,} are read, of all of a shard {MOST_HELD:,}"
            )
    captions, facts, odd = said_by(texts, own, words)
    for said in odd:
        found.note(said)
    return {**facts, "captions": captions}


def said_by(
    texts: Mapping[str, bytes], members: Collection[str], words: CaptionWords
) -> tuple[tuple[Caption, ...], dict[str, Any], list[Said]]:
    """The captions and facts in a sample's texts (by suffix; JSON first), and the content of each text.

    Raises:
        ValueError: one of them cannot be read.
    """
    facts: dict[str, Any] = {}
    told: list[Said] = []
    for suffix in sorted(texts, key=lambda suffix: (suffix.rpartition(".")[2] != "json", suffix)):
        kind = told_of(suffix, members, words)
        if kind is None:
            continue
        said, more = said_in(suffix, texts[suffix], words, kind=kind)
        told.append(said)
        facts |= more
    return joined([said.captions for said in told]), facts, told


def key_of(name: str, shard: str | None = None) -> str:
    """The key of a sample: its own if it fits our shards, else a short hash of it followed by its legible part.

    It depends on the name (and on the shard's, if given) alone.
    """
    full = f"{shard.removesuffix('.tar')}-{name}" if shard else name
    if KEY.fullmatch(full):
        return full
    legible = re.sub(r"[^A-Za-z0-9_\-]+", "-", name.rpartition("/")[2])[:60].strip("-")
    return f"{hashlib.sha1(full.encode()).hexdigest()[:12]}-{legible or 'clip'}"


def rows_of(
    surveys: Iterable[Survey],
    store: Store,
    choices: Choices,
    run: Callable[[Callable[[list[Sample]], list[ClipRow | Refusal]], Iterable[list[Sample]]], Iterator[Outcome]],
) -> Iterator[tuple[Survey, list[ClipRow], list[Refusal]]]:
    """For each shard, in order, its rows and its refusals. A key may come again in another shard.

    run: maps a function over lists of samples in guarded processes, in their order. If a list kills its process, its samples are read again
    one by one, so that only the clip at fault is lost.
    """
    waiting: deque[Survey] = deque()
    read = VideoSurvey(store, choices)
    rows: list[ClipRow] = []
    refused: list[Refusal] = []

    def units() -> Iterator[list[Sample]]:
        for surveyed in surveys:
            waiting.append(surveyed)
            yield from _units(surveyed.samples)

    for unit in run(read, units()):
        while waiting[0].shard != unit.item[0].shard:
            surveyed = waiting.popleft()
            yield surveyed, rows, refused + surveyed.refused
            rows, refused = [], []
        several = unit.result is None and len(unit.item) > 1
        for done in run(read, ([sample] for sample in unit.item)) if several else [unit]:
            found = done.result or [Refusal(done.item[0].shard, done.item[0].name, "media", done.reason)]
            rows += [one for one in found if isinstance(one, ClipRow)]
            waiting[0].notes.update(note for one in found if isinstance(one, ClipRow) for note in _notes(one))
            refused += [one for one in found if isinstance(one, Refusal)]
    for surveyed in waiting:
        yield surveyed, rows, refused + surveyed.refused
        rows, refused = [], []


def _notes(row: ClipRow) -> list[str]:
    return [f"clips that are {what}" for what in row.extra.get("odd", ())] + ["clips that lack a part"] * ("lacks" in row.extra)


def _units(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Lists of a shard's samples, each the work of a process at a time."""
    unit: list[Sample] = []
    for sample in samples:
        if unit and (len(unit) == _UNIT or sum(one.size for one in unit) + sample.size > _UNIT_BYTES):
            yield unit
            unit = []
        unit.append(sample)
    if unit:
        yield unit


class VideoSurvey:
    """Opens the videos of samples and gives for each its row, with hash, size, rate and number of frames, or why it has none."""

    def __init__(self, store: Store, choices: Choices) -> None:
        self.store, self.choices = store, choices

    def __call__(self, samples: Sequence[Sample]) -> list[ClipRow | Refusal]:
        found: list[ClipRow | Refusal] = []
        for sample in samples:
            try:
                found.append(self._row(sample))
            except ValueError as error:
                found.append(Refusal(sample.shard, sample.name, "media", str(error)))
        return found

    def _row(self, sample: Sample) -> ClipRow:
        media = self.store.read(sample.shard, sample.offset, sample.size)
        named = f"{told(sample.name.encode())}.{sample.suffix} of {sample.shard}"
        info = probe(media, name=named, timeline=True)  # counts the frames that are shown: headers ignore edit lists
        if not info.frames:
            raise ValueError(f"{named} holds no frame")
        facts: dict[str, Any] = {"split": "train", "extra": {}, **sample.facts}
        if self.choices.held_out:
            group = facts.get("source") or sample.key
            hashed = int.from_bytes(blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64
            facts["split"] = "heldout" if hashed < self.choices.held_out else "train"
        seen = {"odd": list(info.odd), "lacks": info.lacks}
        facts["extra"] = facts["extra"] | {name: value for name, value in seen.items() if value}
        if sample.name != sample.key:
            facts["extra"] = {**facts["extra"], "name": sample.name}
        clip = ClipFacts(key=sample.key, frames=info.frames, fps=info.fps, height=info.height, width=info.width, **facts)
        digest = hashlib.sha256(media).hexdigest()
        return clip_row(clip, Member(sample.key, sample.suffix, sample.shard, sample.offset, sample.size, digest))


def expanded(pattern: str) -> list[str]:
    """The names of a pattern with a range in braces, `a-{000000..000012}.tar`; a pattern without one stays as it is."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if not first <= last < first + 10_000_000:
        raise ValueError(f"{match[0]} in shards={pattern} is no range; write {{000000..000099}}")
    numbers: Sequence[int] = range(first, last + 1)
    return [name for number in numbers for name in expanded(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")]
