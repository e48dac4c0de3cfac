"""Groups of clips that show the same, each with its best member, and clips that an evaluation set already holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sora.curation.duplicates.candidates import close_pairs
from sora.curation.duplicates.comparing import aligned
from sora.curation.duplicates.signature import MIRROR, Signature, informative
from sora.system.terminal import counted

TOGETHER = 1024  # signatures that are looked at together
PLANES = 64  # random planes whose sides make the hash of an embedding


@dataclass(frozen=True)
class ClipColumns:
    """Clips as columns.

    keys: unique. digests: SHA-256 of each clip's content. signatures: any sequence, which may read one when it is asked for. pixels: of a
    frame, at the source's size. sharpness: the score of that name. embeddings: one row per clip, by a scorer, or None.
    """

    keys: Sequence[str]
    digests: Sequence[str]
    signatures: Sequence[Signature]
    pixels: Sequence[int]
    sharpness: Sequence[float]
    embeddings: Float[ndarray, "n D"] | None = None

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.keys, self.digests, self.signatures, self.pixels, self.sharpness)}
        lengths |= set() if self.embeddings is None else {len(self.embeddings)}
        if len(lengths) > 1:
            raise ValueError(f"columns of clips have {', '.join(map(str, sorted(lengths)))} rows; give one row per clip in each")
        if len(set(self.keys)) < len(self.keys):
            twice = next(key for key in self.keys if list(self.keys).count(key) > 1)
            raise ValueError(f"two clips have the key {twice!r}; give each its own")

    def __len__(self) -> int:
        return len(self.keys)


class Match(NamedTuple):
    """Two clips that show the same. kind: how that is known. shift: seconds from the start of `one` to that of `other`. mirrored: left to
    right. guard: whether `other` is a clip of `against`."""

    one: str
    other: str
    kind: Literal["exact", "perceptual", "embedding"]
    shift: float
    mirrored: bool
    guard: bool


class Duplicates(NamedTuple):
    """groups: keys of clips that show the same, the best first, by which the groups are sorted; clips without duplicates are in none.
    guarded: clips that show what a clip of `against` shows, or are in a group with such a clip, and that clip's key. matches: by what."""

    groups: list[list[str]]
    guarded: dict[str, str]
    matches: list[Match]

    @property
    def copies(self) -> dict[str, str]:
        """The clips that are not the best of their group, and the key of the best."""
        return {key: group[0] for group in self.groups for key in group[1:]}


def find_duplicates(
    clips: ClipColumns, *, against: ClipColumns | None = None, overlap: float = 0.5, similarity: float | None = None
) -> Duplicates:
    """Find the clips that show the same: equal bytes, or pictures that agree over time, or, with `similarity`, alike embeddings.

    The best of a group has the most pixels, then is the longest, then the sharpest, then has the first key. The result does not depend on
    the order of the clips.

    Args:
        clips: among which duplicates are found.
        against: clips that none of `clips` may show again, such as those of evaluation sets. They are not compared with each other.
        overlap: share of the shorter clip's pictures, in (0, 1], that lie beside pictures of the other; a part of a longer clip has 1.
        similarity: least cosine between embeddings of clips that show the same, in (0, 1]; None: embeddings are not compared.

    Raises:
        ValueError: a number outside its range, or `similarity` without embeddings.
    """
    if not 0 < overlap <= 1 or not (similarity is None or 0 < similarity <= 1):
        raise ValueError(f"overlap={overlap} and similarity={similarity} must lie in (0, 1]; similarity may be null")
    table = _Table(clips, against)
    matches = list(table.exact())
    matches += table.perceptual(overlap)
    if similarity is not None:
        matches += table.embedded(similarity)
    return table.grouped(matches)


class _Pair(NamedTuple):
    one: int
    other: int
    kind: Literal["exact", "perceptual", "embedding"]
    shift: float = 0.0
    mirrored: bool = False


class _Table:
    """The clips of both sides in one numbering: `clips` by key, then those of `against` by key."""

    def __init__(self, clips: ClipColumns, against: ClipColumns | None) -> None:
        self._clips, self._against = clips, against
        sides = (clips,) if against is None else (clips, against)
        self._rows = [row for side in sides for row in sorted(range(len(side)), key=side.keys.__getitem__)]
        self._guards = len(clips)
        # Of clips with equal bytes only the first is compared with others.
        self._first: dict[str, int] = {}
        for number in range(len(self._rows)):
            self._first.setdefault(self._digest(number), number)
        self._distinct = sorted(self._first.values())

    def exact(self) -> Iterator[_Pair]:
        """Pairs of clips with equal bytes: each with the first such clip."""
        for number in range(len(self._rows)):
            first = self._first[self._digest(number)]
            if first < number and first < self._guards:
                yield _Pair(first, number, "exact")

    def perceptual(self, overlap: float) -> Iterator[_Pair]:
        hashes, owners = [], []
        for start in range(0, len(self._distinct), TOGETHER):
            numbers = self._distinct[start : start + TOGETHER]
            signatures = [self._signature(number) for number in numbers]
            telling = informative(np.concatenate([signature.pictures for signature in signatures]))
            hashes.append(np.concatenate([signature.hashes for signature in signatures])[telling])
            owners.append(np.repeat(numbers, [len(signature.hashes) for signature in signatures])[telling])
        if not hashes:
            return
        pairs = close_pairs(np.concatenate(hashes), np.concatenate(owners), int(MIRROR), guards=self._guards)
        del hashes, owners
        for one, other, mirror in pairs.tolist():
            found = aligned(self._signature(one), self._signature(other), mirror=bool(mirror), overlap=overlap)
            if found is not None:
                yield _Pair(one, other, "perceptual", found.shift, bool(mirror))

    def embedded(self, similarity: float) -> Iterator[_Pair]:
        places = [self._place(number) for number in range(len(self._rows))]
        embeddings = [None if side.embeddings is None else side.embeddings[row] for side, row in places]
        lacking = sum(embedding is None for embedding in embeddings)
        if lacking:
            raise ValueError(
                f"similarity={similarity}, but {counted(lacking, 'clip')} came without embeddings; add a scorer that gives them"
            )
        if not self._distinct:
            return
        vectors = np.stack([embeddings[number] for number in self._distinct]).astype(np.float32)  # pyright: ignore[reportCallIssue, reportArgumentType]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        for one, other, _ in close_pairs(
            _sides(vectors), np.arange(len(vectors)), 0, guards=int(np.searchsorted(self._distinct, self._guards))
        ).tolist():
            if float(vectors[one] @ vectors[other]) >= similarity:
                yield _Pair(self._distinct[one], self._distinct[other], "embedding")

    def grouped(self, pairs: list[_Pair]) -> Duplicates:
        """The groups that the pairs join, whether through one clip or many."""
        parents = np.arange(len(self._rows))
        guarded: dict[int, int] = {}
        for pair in sorted(pairs):
            if pair.other >= self._guards:
                guarded.setdefault(pair.one, pair.other)
                continue
            parents[_root(parents, pair.other)] = _root(parents, pair.one)
        members: dict[int, list[int]] = {}
        for number in sorted({each for pair in pairs for each in pair[:2] if each < self._guards}):
            members.setdefault(_root(parents, number), []).append(number)
        refused: dict[str, str] = {}
        for group in members.values():
            guard = next((guarded[number] for number in group if number in guarded), None)
            if guard is not None:
                refused |= {self._key(number): self._key(guarded.get(number, guard)) for number in group}
        groups = [[self._key(number) for number in sorted(group, key=self._rank)] for group in members.values() if len(group) > 1]
        matches = [
            Match(self._key(one), self._key(other), kind, shift, mirrored, other >= self._guards)
            for one, other, kind, shift, mirrored in sorted(pairs)
        ]
        return Duplicates(sorted(groups), dict(sorted(refused.items())), matches)

    def _place(self, number: int) -> tuple[ClipColumns, int]:
        """The side of a clip and its row there."""
        side = self._clips if number < self._guards or self._against is None else self._against
        return side, self._rows[number]

    def _digest(self, number: int) -> str:
        side, row = self._place(number)
        return side.digests[row]

    def _key(self, number: int) -> str:
        side, row = self._place(number)
        return side.keys[row]

    def _signature(self, number: int) -> Signature:
        side, row = self._place(number)
        return side.signatures[row]

    def _rank(self, number: int) -> tuple[int, int, float, str]:
        """The order of a group's members, the best first."""
        side, row = self._place(number)
        return -side.pixels[row], -len(side.signatures[row].hashes), -side.sharpness[row], side.keys[row]


def _sides(vectors: Float[ndarray, "n D"]) -> ndarray:
    """A hash of each unit vector: on which sides of 64 random planes it lies; the share of sides that differ is the angle over pi."""
    planes = np.random.default_rng(0).normal(size=(vectors.shape[1], PLANES)).astype(np.float32)
    octets = np.packbits(vectors @ planes > 0, axis=1, bitorder="little")
    return np.ascontiguousarray(octets).view("<u8").astype(np.uint64)


def _root(parents: Int[ndarray, " n"], number: int) -> int:
    """The number that stands for the group of a clip; the path to it becomes shorter."""
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number
