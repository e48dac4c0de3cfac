"""What the frames of datasets depend on, besides their bytes, and which datasets a reader may have."""

from __future__ import annotations

from pathlib import PurePosixPath

from sora.data.index.index import Index
from sora.data.index.writer import sealed, written_here
from sora.gate import trust
from sora.video.decoding import pictures
from sora.video.decoding.decord import DecordReader
from sora.video.decoding.guarded import GuardedReader
from sora.video.demuxing.kinds import VIDEO_SUFFIXES
from sora.video.reader import VideoReader


def decoded_by(reader: VideoReader, *indexes: Index) -> str:
    """The reader's identity, and that of what reads images where a dataset may hold some: frames of videos alone do not depend on it.

    Raises ValueError for datasets that the reader is not to be given (`refuse_others`).
    """
    refuse_others(reader, *indexes)
    return " ".join([reader.identity(), *([pictures.identity()] if any(map(may_hold_images, indexes)) else [])])


def refuse_others(reader: VideoReader, *indexes: Index) -> None:
    """Raise ValueError if decord were to read clips that others encoded: its FFmpeg is of 2021, and media may be made to break it.

    What `sora prepare` of this user wrote bears a seal; where another user's did, the command line says so. Shards that were indexed hold
    files as somebody made them.
    """
    if not isinstance(reader.reader if isinstance(reader, GuardedReader) else reader, DecordReader):
        return
    for index in indexes:
        if sealed(index.described):
            continue
        named = f"reader=decord reads what sora prepare wrote, and {index.folder}"
        if not written_here(index.described):
            raise ValueError(f"{named} holds clips as others made them; choose reader=pyav, or write them anew with sora prepare")
        if not trust.allowed(index.folder):
            raise ValueError(
                f"{named} bears no seal of yours; choose reader=pyav, or, if you trust who prepared it: {trust.words(index.folder)}"
            )


def may_hold_images(index: Index) -> bool:
    """Whether a clip of the dataset, of whatever split, is not called a video. `sora prepare` makes videos of images, others do not."""
    return any(PurePosixPath(f"clip.{suffix}").suffix.lower().lstrip(".") not in VIDEO_SUFFIXES for suffix in index.columns.suffixes)
