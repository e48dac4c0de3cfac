"""What a folder is that was named as a dataset and is none, and the command that leads on from it."""

from __future__ import annotations

import shlex
from pathlib import Path

from sora.data.index.writer import DATASET

INDEXING = "indexing"  # beside the shards: what `sora data index` goes on from (sora.ingest.index_progress)


def no_dataset(folder: Path) -> str:
    """Why a folder is no dataset, and what makes one: of videos, of shards, of work that was stopped, or of nothing. For a message."""
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
    """The command for a folder of videos and images, for a message."""
    return f"videos and images become one with: sora prepare {shlex.quote(f'input={folder}')} output=FOLDER"
