"""Keeps a checkpoint readable while its run may remove it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sora.gate.files import refuse_links_out, refuse_outside
from sora.system import files as storage


@contextmanager
def held(path: Path) -> Iterator[Path]:
    """A context with a folder of the same name, of hard links to a checkpoint's files, or `path` itself where the disk cannot make any.

    If the reader is killed, the run removes the links when it next starts. A ValueError raised inside the context names `path`.

    Raises:
        FileNotFoundError: the run has removed the checkpoint.
    """
    run = path.parent.parent
    refuse_outside(path, run)
    refuse_links_out(path, home=run)  # a hard link to a symbolic link would point to nowhere from the new folder
    aside = run / f"{storage.STAGING}read-{os.getpid()}-{secrets.token_hex(4)}"
    there = aside / path.parent.name / path.name
    try:
        try:
            there.mkdir(parents=True)
            for name in os.listdir(path):
                os.link(path / name, there / name)
        except FileNotFoundError:
            raise
        except OSError:  # a disk that is read-only or has no hard links
            there = path
        try:
            yield there
        except ValueError as error:
            if there == path and not path.is_dir():
                raise FileNotFoundError(f"{path} was let go while it was read") from error
            raise ValueError(str(error).replace(str(aside), str(run))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
