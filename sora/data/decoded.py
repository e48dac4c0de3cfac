"""What the frames of datasets depend on, besides their bytes."""

from __future__ import annotations

from pathlib import PurePosixPath

from sora.data.decoding import pictures
from sora.data.decoding.kinds import VIDEO_SUFFIXES
from sora.data.decoding.reader import VideoReader
from sora.data.index import Index


def decoded_by(reader: VideoReader, *indexes: Index) -> str:
    """The reader's identity, and that of what reads images where a dataset may hold some: frames of videos alone do not depend on it."""
    return " ".join([reader.identity(), *([pictures.identity()] if any(map(may_hold_images, indexes)) else [])])


def may_hold_images(index: Index) -> bool:
    """Whether a clip of the dataset, of whatever split, is not called a video. `sora prepare` makes videos of images, others do not."""
    return any(PurePosixPath(f"clip.{suffix}").suffix.lower().lstrip(".") not in VIDEO_SUFFIXES for suffix in index.columns.suffixes)
