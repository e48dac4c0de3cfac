"""Messages for a folder that was named as a dataset and is none: what it seems to be, and the command to run next."""

from __future__ import annotations

import shlex
from pathlib import Path

from sora.data.index.writer import DATASET

INDEXING = "indexing"  # the folder of unfinished work of `sora data index` (sora.ingest.index_progress)


def no_dataset(folder: Path) -> str:
    """A message: why a folder is no dataset (it holds videos, shards, work that was stopped, or nothing), and which command makes one."""
    if folder.is_file():
        return f"{folder} is a file, and a dataset is a folder{f': name {folder.parent}' if folder.name == DATASET else ''}"
    if not folder.is_dir():
        return f"{folder} is no folder; make one with: sora prepare input=FOLDER {shlex.quote(f'output={folder}')}"
    from sora.data.index import units

    why = f"{folder} holds no {DATASET}, so it is no finished dataset"
    if (folder / units.FOLDER).is_dir():
        return f"{why}; the sora prepare that began it goes on when the same line is given again"
    if (folder / INDEXING).is_dir():
        return f"{why}; the sora data index that began it goes on when the same line is given again"
    for pattern in ("*.tar", "*/*.tar"):
        if next(folder.glob(pattern), None) is not None:
            words = [f"index={folder}", *([] if pattern == "*.tar" else [f"shards={pattern}"])]
            return f"{why}; its shards are indexed with: sora data {shlex.join(words)}"
    return f"{why}; {of_videos(folder)}"


def of_videos(folder: Path | str) -> str:
    """The command to run on a folder of videos and images, for a message."""
    return f"videos and images become one with: sora prepare {shlex.quote(f'input={folder}')} output=FOLDER"
