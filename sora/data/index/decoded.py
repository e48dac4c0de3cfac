"""Which readers decide a dataset's frames, and which readers a dataset may be given to."""

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
    """The identity of the video reader, and of the image reader if a dataset may hold images: frames of videos alone do not depend on it.

    Raises ValueError for datasets that this reader must not read (`refuse_others`).
    """
    refuse_others(reader, *indexes)
    return " ".join([reader.identity(), *([pictures.identity()] if any(map(may_hold_images, indexes)) else [])])


def refuse_others(reader: VideoReader, *indexes: Index) -> None:
    """Raise ValueError if decord would read clips that others encoded: its FFmpeg is of 2021, and media can be crafted to break it.

    Clips that `sora prepare` wrote for this user bear a seal; a dataset of another user passes only if the command line allows it. Shards
    that were only indexed hold files as their authors made them, so decord never reads these.
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
    """Whether any clip of the dataset, in any split, is not stored as a video. `sora prepare` stores images as videos; others may not."""
    return any(PurePosixPath(f"clip.{suffix}").suffix.lower().lstrip(".") not in VIDEO_SUFFIXES for suffix in index.columns.suffixes)
