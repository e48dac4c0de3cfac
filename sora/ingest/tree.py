"""Lists a folder's videos and images, recognised by their bytes, and all other entries with a reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sora.data.index.writer import DATASET
from sora.system.guarded_pool import Outcome
from sora.video.demuxing.kinds import HEAD, IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaFormat, kind_of

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Outcome]]
_AT_ONCE = 256  # files that a process examines before it answers


class Passed(NamedTuple):
    """An entry of a folder that was not examined: its path in the folder, and why. For a folder, everything below it."""

    source: str
    reason: str


class Refused(NamedTuple):
    """A video or an image, or a part of one, that gives no clip."""

    source: str
    start: float
    reason: str


class TreeWords(NamedTuple):
    """What differs between commands in messages. prefix: of keys. unwanted: why images are not used. wanted: what is looked for."""

    prefix: str = "source."
    unwanted: str = "source.images=false"
    wanted: str = "video and no image"


WORDS = TreeWords()


class Tree(NamedTuple):
    """The files of a folder. files: those that can be opened, as relative paths in order. passed: all other entries, in order."""

    files: list[str]
    passed: list[Passed]


def tree(folder: Path, *, key: str, follow: bool = False, besides: Path | None = None, words: TreeWords = WORDS) -> Tree:
    """List a folder and its subfolders. follow: whether to walk linked folders, each once. besides: a folder to skip. key: for errors.

    Raises:
        ValueError: it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{key}={folder} is {'a file, and ' if folder.exists() else ''}no folder")
    found = Tree([], [])
    left = {_identity(os.stat(besides))} if besides is not None and besides.is_dir() else set()
    try:
        _walk(folder, "", found, follow, {_identity(os.stat(folder))}, left)
    except OSError as error:
        raise ValueError(f"{key}={folder} cannot be read: {error.strerror}") from None
    passed = [Passed(one.source, one.reason.replace(f" {WORDS.prefix}", f" {words.prefix}")) for one in found.passed]
    return Tree(sorted(found.files), sorted(passed))


def _walk(folder: Path, below: str, found: Tree, follow: bool, seen: set[tuple[int, int]], left: set[tuple[int, int]]) -> None:
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        name = below + entry.name
        try:
            why = _unusable(entry, follow)
            if why is None and entry.is_dir():
                about = _identity(entry.stat())
                if about in seen:
                    why = "is a folder that was walked already, under another name"
                elif about not in left:
                    seen.add(about)
                    _walk(Path(entry.path), f"{name}/", found, follow, seen, left)
            elif why is None:
                found.files.append(name)
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        if why is not None:
            found.passed.append(Passed(legible(name), why))


def _unusable(entry: os.DirEntry[str], follow: bool) -> str | None:
    """Why an entry of a folder is neither a file nor a folder that is walked."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is no text in UTF-8, so that no list can hold it; rename it"
    if entry.name.startswith("."):
        return "is hidden"
    if entry.is_symlink():
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            return f"is a link to nowhere ({error.strerror})"
        if stat.S_ISDIR(mode) and not follow:
            return "is a linked folder, and those are not followed; source.follow_links=true does, or give it as input of its own"
    else:
        mode = entry.stat(follow_symlinks=False).st_mode
    return None if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else "is no file, but a pipe, a socket or a device"


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def legible(name: str) -> str:
    """A file's name as text in UTF-8, with \\x.. for bytes that are not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass
class Sorted:
    """The files of a folder by kind. media: videos and images to use. others: other files, with their kind. refused: files that are named
    like a video or image and are none. passed: files that were not examined or are left out."""

    media: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)

    def passed_over(self, taken: Iterable[str]) -> list[Passed]:
        """All files that give no clip, without those that were `taken` as captions, in order."""
        known = set(taken)
        return sorted([*self.passed, *(Passed(name, what) for name, what in self.others.items() if name not in known)])


def sorted_files(
    folder: Path,
    run: Run,
    leave_out: Sequence[str],
    *,
    images: bool,
    follow: bool,
    besides: Path | None,
    key: str = "input",
    words: TreeWords = WORDS,
) -> Sorted:
    """The files of a folder and its subfolders, by the kind that their first bytes show. leave_out: patterns of paths to leave out.

    run: maps a function over items in guarded processes. See `tree` for the rest. Raises ValueError if there is no video and no image.
    """
    held = tree(folder, key=key, follow=follow, besides=besides, words=words)
    found = Sorted(passed=list(held.passed))
    wanted = _wanted(held.files, leave_out, words)
    found.passed += [Passed(name, f"{words.prefix}leave_out names it") for name in sorted(set(held.files) - set(wanted))]
    chunks = [wanted[first : first + _AT_ONCE] for first in range(0, len(wanted), _AT_ONCE)]
    stills: list[str] = []
    for done in run(partial(_kinds, folder), chunks):
        for name, kind in zip(done.item, done.result or [done.reason] * len(done.item), strict=True):
            _sort(found, stills, name, kind, words)
    covered = {str(PurePosixPath(name).with_suffix("")) for name in found.media}
    for name in stills:
        if not images:
            found.passed.append(Passed(name, f"is an image, and {words.unwanted}"))
        elif str(PurePosixPath(name).with_suffix("")) in covered:
            found.passed.append(Passed(name, "is an image beside a video of its name: its cover"))
        else:
            found.media.append(name)
    found.media.sort()
    if not found.media:
        told = [f"{one.source} {one.reason}" for one in [*found.refused, *found.passed_over(())]]
        if (folder / DATASET).is_file():
            raise ValueError(f"{key}={folder} is a dataset already, of shards with an index: train on it with data.folders=[{folder}]")
        raise ValueError(f"{key}={folder} holds no {words.wanted}" + (f"; {listed(told)}" if told else ": it is empty"))
    return found


def listed(told: Sequence[str], most: int = 3) -> str:
    """The first few texts, joined for a line."""
    return "; ".join([*told[:most], *([f"and {len(told) - most} more"] if len(told) > most else [])])


def _wanted(names: Sequence[str], leave_out: Sequence[str], words: TreeWords) -> list[str]:
    unmet = [pattern for pattern in leave_out if not any(fnmatchcase(name, pattern) for name in names)]
    if unmet:
        shown = ", ".join((*names[:5], "…") if len(names) > 5 else names)
        raise ValueError(f"{words.prefix}leave_out: no file is called {', '.join(unmet)}; there are {shown}")
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in leave_out)]


def _sort(found: Sorted, stills: list[str], name: str, kind: MediaFormat | str, words: TreeWords) -> None:
    """Put a file into its list. kind: the file's kind, or why it cannot be told."""
    meant = PurePosixPath(name).suffix.lower().removeprefix(".") in VIDEO_SUFFIXES | IMAGE_SUFFIXES
    if isinstance(kind, MediaFormat) and kind.read:
        (stills if kind.picture else found.media).append(name)
        return
    why = kind if isinstance(kind, str) else f"is {kind.what}"
    if meant:
        found.refused.append(Refused(name, 0.0, why if isinstance(kind, str) else f"{why}, no {words.wanted} that is read here"))
    else:
        found.others[name] = why


def _kinds(folder: Path, names: Sequence[str]) -> list[MediaFormat | str]:
    """The kind of each file by its first bytes, or why it cannot be read."""
    return [kind_in(folder / name) for name in names]


def kind_in(path: Path) -> MediaFormat | str:
    """The kind of a file by its first bytes, or why it cannot be read."""
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
