"""Reads clips from shards that can only be read from front to back, without index or ranges.

The clips depend on where the reading began, so a run that reads this way cannot be resumed exactly: use it to look into a dataset, to
prepare one (`sora prepare`), or to evaluate, and train from an index (`sora data index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from sora.data.index.rows import Caption
from sora.data.shards.stores import SCHEMES
from sora.data.shards.tar_reader import ByteFile, TarWalk, sample_of
from sora.ingest.clip_texts import WORDS, CaptionWords
from sora.ingest.survey import MOST_TOLD, Refusal, said_by, told_of, videos_of
from sora.video.demuxing.kinds import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES


class Streamed(NamedTuple):
    """A clip of a stream. name: the shard's own name for it. facts: the fields of `ClipFacts` that its texts give."""

    shard: str
    name: str
    suffix: str
    media: bytes
    captions: tuple[Caption, ...]
    facts: dict[str, Any]


class ShardStream:
    """Iterates over the clips of shards, one shard after another; a clip comes once all its members were read.

    urls: http, https or anything else that fsspec reads, or paths. most_mb: of one clip. words: which members hold captions, and where.
    `refused` grows meanwhile: it names samples whose members do not lie together, and everything that a shard loses. There is no shuffling:
    give the urls in another order. Each iteration begins at the first url.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        most_mb: float,
        words: CaptionWords = WORDS,
        open_file: Callable[[str], ByteFile] | None = None,
    ) -> None:
        self.urls, self.most_mb, self.words = tuple(urls), most_mb, words
        self.refused: list[Refusal] = []
        self._open = open_file or opened

    def __iter__(self) -> Iterator[Streamed]:
        for url in self.urls:
            try:
                file = self._open(url)
            except (ValueError, OSError) as error:
                self.refused.append(Refusal(url, "", "shard", str(error)))
                continue
            with closing(file):
                yield from self._shard(url, file)

    def _shard(self, url: str, file: ByteFile) -> Iterator[Streamed]:
        walk = TarWalk(file, size=None)
        name, own, done = None, {}, set()
        try:
            for found in walk:
                parts = sample_of(found.name)
                if parts is None:
                    continue
                if parts[0] != name:
                    yield from self._sample(url, name, own)
                    name, own = parts[0], {}
                    if name in done:
                        self.refused.append(Refusal(url, name, "apart", "members of it came before; a stream cannot join them"))
                    done.add(name)
                text = self.words.may_tell(parts[1])
                wanted = text or parts[1].rpartition(".")[2] in _MEDIA
                if wanted and found.size > (MOST_TOLD if text else self.most_mb * 2**20):
                    self.refused.append(Refusal(url, found.name, "size", f"it has {found.size} bytes, too many"))
                elif wanted:
                    own[parts[1]] = walk.content()
        except (ValueError, OSError) as error:
            self.refused.append(Refusal(url, name or "", "shard", str(error)))
            own = {}
        if any(trouble.kind in ("cut", "end") for trouble in walk.troubles):
            self.refused.append(Refusal(url, name or "", "incomplete", "the shard ends at it, without an end mark"))
        else:
            yield from self._sample(url, name, own)
        self.refused += [Refusal(url, trouble.place, trouble.kind, trouble.reason) for trouble in walk.troubles]

    def _sample(self, url: str, name: str | None, own: dict[str, bytes]) -> Iterator[Streamed]:
        if name is None:
            return
        texts = {suffix: content for suffix, content in own.items() if told_of(suffix, own, self.words)}
        videos = videos_of(own, [], None)
        if len(videos) != 1:
            self.refused.append(
                Refusal(url, name, "video", f"the sample has {len(videos)} videos (its members: {', '.join(own) or 'none'})")
            )
            return
        try:
            captions, facts, _ = said_by(texts, own, self.words)
        except ValueError as error:
            self.refused.append(Refusal(url, name, "text", str(error)))
            return
        yield Streamed(url, name, videos[0], own[videos[0]], captions, facts)


def opened(url: str) -> ByteFile:
    """Open a path, or a URL of a known protocol that need not serve ranges; no pipes, no chains of protocols."""
    scheme, found, _ = url.partition("://")
    if not found:
        return open(url, "rb")
    if scheme not in SCHEMES or "::" in url:
        raise ValueError(f"{url!r} is no URL that is streamed; it begins with one of {', '.join(f'{one}://' for one in SCHEMES)}")
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url)
    return files.open(path, "rb", block_size=0 if scheme in ("http", "https") else 8 << 20)
