"""Sets of videos to score or to compare with: a split of a dataset, or a folder of files. A damaged video is an error that names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from sora.data.index.decoded import decoded_by
from sora.data.index.index import Index
from sora.data.index.rows import Caption
from sora.data.loading.caption_checks import caption_kind
from sora.ingest.clip_texts import WORDS
from sora.ingest.sidecars import Sidecars
from sora.ingest.tree import Passed, kind_in, listed, tree
from sora.system import files as storage
from sora.video.decoding import pictures
from sora.video.demuxing.kinds import VIDEO_SUFFIXES, MediaFormat
from sora.video.files import CONFINED, PYAV

EVALUATION, SCORES = ".evaluation", "scores.json"  # files in a folder that sora evaluate writes to: at its start, at its end


@dataclass(frozen=True, order=True)
class Shape:
    """The common shape of videos in one distance: height and width in pixels, frames per second."""

    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        """The form in protocols, after the frames. It must not change, because protocols' hashes decide which scores are comparable."""
        return f"{self.height}x{self.width} at {self.fps:g} fps"

    @property
    def told(self) -> str:
        """The form in messages, width first as in size=."""
        return f"{self.width}x{self.height} at {self.fps:g} fps"


class Videos(Protocol):
    """A set of videos, by number.

    identity(n): SHA-256 of a video's bytes. frames(n): their number. read(n, first, frames): frames from number `first` on. decoder: what
    pixels depend on besides those bytes. prompt(n): None if there is none. codec(n): as in h264/yuv420p; None if it is not known.
    """

    @property
    def place(self) -> str: ...
    @property
    def decoder(self) -> str: ...
    def about(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def name(self, number: int) -> str: ...
    def identity(self, number: int) -> str: ...
    def frames(self, number: int) -> int: ...
    def shape(self, number: int) -> Shape: ...
    def prompt(self, number: int) -> str | None: ...
    def codec(self, number: int) -> str | None: ...
    def read(self, number: int, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]: ...


class DatasetVideos:
    """A split of a dataset of shards. caption: the kind of caption that is the prompt; None for dense ones, or a clip's first if it has
    none.

    Raises ValueError for a kind that the clips do not have.
    """

    def __init__(self, index: Index, *, caption: str | None) -> None:
        self.index, self.kind, self.strict = index, caption_kind(index, caption), caption is not None
        self.place = f"{index.folder} ({index.split})"
        self.decoder = decoded_by(PYAV, index)

    def lines(self) -> list[str]:
        """Lines on what is not scored: the clips that a selection leaves out."""
        return [f"{self.place}: {line}" for line in self.index.selected]

    def about(self) -> dict[str, Any]:
        return described(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, number: int) -> str:
        return self.index.key(number)

    def identity(self, number: int) -> str:
        return self.index.member(number).sha256

    def frames(self, number: int) -> int:
        return int(self.index.frames[number])

    def shape(self, number: int) -> Shape:
        return Shape(int(self.index.heights[number]), int(self.index.widths[number]), round(float(self.index.fps[number]), 3))

    def prompt(self, number: int) -> str | None:
        said = self._said(number)
        return None if said is None else said.text

    def prompt_kind(self, number: int) -> str:
        """The kind of the caption that is the prompt."""
        said = self._said(number)
        return "none" if said is None else said.kind

    def _said(self, number: int) -> Caption | None:
        captions = self.index.captions(number)
        fitting = [item for item in captions if item.kind == self.kind]
        if not fitting and not self.strict:
            fitting = list(captions)
        return fitting[0] if fitting else None

    def codec(self, number: int) -> str | None:
        return None

    def read(self, number: int, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]:
        member = self.index.member(number)
        return _read(self.index.read_member(member), f"{member.key} of {member.shard}", first, frames)


class FolderVideos:
    """The videos in and below a folder, in the order of names, or its images if it has no video; bytes decide which a file is.

    Folders that `sora evaluate` wrote are left out. passed: other files that are neither, with reasons. Files are not converted. A prompt
    is the first caption beside a video, or in the folder's table: see `sora.ingest.sidecars`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        marks = (path.parent for mark in (EVALUATION, SCORES) for path in self.folder.rglob(mark))
        ours = {path.relative_to(self.folder).as_posix() for path in marks} - {"."}
        held = tree(self.folder, key="folder")
        names = [name for name in held.files if not _below(name, ours)]
        kinds = {name: kind_in(self.folder / name) for name in names}
        videos = [name for name, kind in kinds.items() if isinstance(kind, MediaFormat) and kind.demuxer]
        images = [name for name, kind in kinds.items() if isinstance(kind, MediaFormat) and kind.picture]
        self.names = videos or images
        self.decoder = PYAV.identity() if videos else f"{PYAV.identity()} {pictures.identity()}"
        self.passed = [one for one in held.passed if not _below(one.source, ours) and not one.source.endswith(EVALUATION)]
        self.passed += [Passed(name, "is an image beside videos") for name in images if videos]
        others = {name: kind for name, kind in kinds.items() if name not in {*videos, *images}}
        for name, kind in others.items():
            if PurePosixPath(name).suffix.lower().removeprefix(".") in VIDEO_SUFFIXES:  # fewer clips give another score
                what = f"is {kind.what}" if isinstance(kind, MediaFormat) else kind
                raise ValueError(f"{self.folder / name} is called a video, but {what}; make it anew, or take it out of the folder")
        self.passed += [Passed(name, f"is {kind.what}" if isinstance(kind, MediaFormat) else kind) for name, kind in others.items()]
        if not self.names:
            told = [f"{one.source} {one.reason}" for one in self.passed] + [f"{one} was written by sora evaluate" for one in sorted(ours)]
            left = f": {listed(told)}" if told else ""
            raise ValueError(f"{folder} holds neither a run, a VAE or a dataset, nor a video or an image{left}")
        self._hashes: dict[int, str] = {}
        self._probed: dict[int, Any] = {}

    @property
    def place(self) -> str:
        return str(self.folder)

    def lines(self) -> list[str]:
        """Lines on the files that are not scored."""
        spoken = self._sidecars.taken() - set(self._sidecars.unused.files)
        told = [f"{one.source} {one.reason}" for one in sorted(self.passed) if one.source not in spoken]
        return [f"{self.folder}: {len(told)} passed over: {listed(told)}"] if told else []

    def about(self) -> dict[str, Any]:
        """The description for a protocol, by contents and not by names."""
        hashes = sorted(self.identity(number) for number in range(len(self)))
        return {"fingerprint": storage.text_hash("\n".join(hashes)), "split": None, "clips": len(self)}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return self.names[number]

    def path(self, number: int) -> Path:
        return self.folder / self.names[number]

    def identity(self, number: int) -> str:
        if number not in self._hashes:
            self._hashes[number] = storage.file_hash(self.path(number))
        return self._hashes[number]

    def frames(self, number: int) -> int:
        return self._info(number).frames

    def shape(self, number: int) -> Shape:
        info = self._info(number)
        return Shape(info.height, info.width, round(float(info.fps), 3))

    def prompt(self, number: int) -> str | None:
        said = self._sidecars.of(self.names[number])
        return said[0].text if said else None

    @cached_property
    def _sidecars(self) -> Sidecars:
        return Sidecars(self.folder, self.names, WORDS)

    def prompt_kind(self, number: int) -> str:
        return "file"

    def codec(self, number: int) -> str | None:
        info = self._info(number)
        return f"{info.codec}/{info.pixel_format}"

    def read(self, number: int, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]:
        return _read(self.path(number), str(self.path(number)), first, frames)

    def _info(self, number: int) -> Any:
        if number not in self._probed:
            # Decoded to the end, because many writers' headers have wrong counts, and a clip must not end early.
            self._probed[number] = CONFINED.probe(self.path(number), timeline=True)
        return self._probed[number]


def described(index: Index) -> dict[str, Any]:
    """The description of a split for a protocol; with a selection, its clips' fingerprint too."""
    chosen = {} if index.selection is None else {"selection": index.selection.clips}
    return {"fingerprint": index.dataset_fingerprint, "split": index.split, "clips": len(index), **chosen}


def _below(name: str, folders: set[str]) -> bool:
    return any(parent.as_posix() in folders for parent in Path(name).parents)


def _read(source: Path | bytes, name: str, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]:
    found = CONFINED.read(source, first=first, frames=frames, name=name)
    if not found.report.clean:
        raise ValueError(
            f"{name} is damaged ({found.report}; {len(found.frames)} of {frames} frames); scores take it whole: replace it or remove it"
        )
    return found.frames


def open_videos(
    folder: Path, *, split: str | None, caption: str | None, sets: Sequence[str] | None = None, selection: str | None = None
) -> DatasetVideos | FolderVideos:
    """The split of a dataset, with captions of a kind as prompts; or all videos of a folder, which have the one that stands beside them.

    sets, selection: of a dataset, as for `Index.open`.
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        return DatasetVideos(Index.open(folder, split, sets=sets, selection=selection), caption=caption)
    return FolderVideos(folder)
