"""A checkpoint that stays while it is read, though the run that made it lets it go meanwhile."""

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
    """A folder of the same name with other links to the files of a checkpoint; `path` itself where the disk takes none.

    What a reader that was killed leaves, the run sweeps away at its next start. A ValueError out of the context names `path`.

    Raises:
        FileNotFoundError: the run has let it go.
    """
    run = path.parent.parent
    refuse_outside(path, run)
    refuse_links_out(path, home=run)  # of which there would be other links, that lead nowhere else
    aside = run / f"{storage.STAGING}read-{os.getpid()}-{secrets.token_hex(4)}"
    there = aside / path.parent.name / path.name
    try:
        try:
            there.mkdir(parents=True)
            for name in os.listdir(path):
                os.link(path / name, there / name)
        except FileNotFoundError:
            raise
        except OSError:  # a disk that cannot be written to, or has no links
            there = path
        try:
            yield there
        except ValueError as error:
            if there == path and not path.is_dir():
                raise FileNotFoundError(f"{path} was let go while it was read") from error
            raise ValueError(str(error).replace(str(aside), str(run))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
