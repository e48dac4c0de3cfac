"""Whether a file may make sora read the other places that it names: only if this user wrote it, or this command line allows the place.

A run, an index or a dataset may be a stranger's. A place outside its own folder (a folder, a file, a URL, a model of the hub) is read in
two cases only: the file has this user's seal, or `--allow PLACE` is on the command line. A seal is a keyed hash (HMAC-SHA-256, RFC 2104) of
the file's content. Its key lies in this user's state folder and never leaves it, so no other user's file has such a seal. Allowed places
are in the variable SORA_ALLOW, one a line, which worker processes inherit.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sora.gate import credentials

ALLOW = "SORA_ALLOW"
KEY_BYTES = 32


def key_file() -> Path:
    """The file of this user's key, in XDG_STATE_HOME, which is ~/.local/state by default."""
    said = os.environ.get("XDG_STATE_HOME", "")
    return (Path(said) if os.path.isabs(said) else Path("~/.local/state").expanduser()) / "sora" / "seal.key"


def seal(*said: Any) -> str | None:
    """This user's seal on the content of a file (plain JSON), hexadecimal. None if the key can neither be read nor created, as in a
    read-only home."""
    key = _key() or _new_key()
    return None if key is None else _hash(key, said)


def sealed(found: object, *said: Any) -> bool:
    """Whether `found` is this user's seal on this content."""
    return isinstance(found, str) and found.isascii() and (key := _key()) is not None and hmac.compare_digest(found, _hash(key, said))


def allowed(place: str | Path) -> bool:
    """Whether the command line allows a folder, file, URL or model of the hub (hf://OWNER/NAME), or one that contains it."""
    wanted = _parts(str(place))
    return wanted is not None and any(_parts(line) == wanted[: len(_parts(line) or ())] for line in _lines() if _parts(line))


@contextmanager
def allowing(places: Iterable[str]) -> Iterator[None]:
    """A context in which this process and those that it starts may also read these places."""
    before = os.environ.get(ALLOW)
    more = [absolute(place) for place in places]
    if more:
        os.environ[ALLOW] = "\n".join([*_lines(), *more])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ALLOW, None)
        else:
            os.environ[ALLOW] = before


def absolute(place: str) -> str:
    """A place in absolute form. Raises ValueError for text that names no place."""
    if not place.strip() or "\n" in place:
        raise ValueError(f"--allow {place!r} names no place; it is a folder, a file, a URL or a model of the hub, hf://OWNER/NAME")
    credentials.refuse(place, said_by="--allow")
    return place if "://" in place else os.path.abspath(place)


def within(path: Path | str, folder: Path | str) -> bool:
    """Whether a path lies in a folder after links are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def words(*places: str | Path) -> str:
    """The command-line words that allow these places."""
    import shlex

    return " ".join(f"--allow {shlex.quote(str(place))}" for place in places)


def _lines() -> list[str]:
    return [line for line in os.environ.get(ALLOW, "").splitlines() if line.strip()]


def _parts(place: str) -> tuple[str, ...] | None:
    """The parts of a place from its root on, of which those of a containing place are a prefix; None for one with `..`."""
    scheme, found, rest = place.partition("://")
    if not found:
        return ("", *Path(os.path.realpath(place)).parts)
    parts = tuple(part for part in rest.split("/") if part)
    return None if not parts or ".." in parts or "." in parts else (scheme.lower(), *parts)


def _hash(key: bytes, said: tuple[Any, ...]) -> str:
    return hmac.digest(key, json.dumps(said, sort_keys=True).encode(), "sha256").hex()


def _key() -> bytes | None:
    """The key; None if there is none, or it belongs to another user."""
    try:
        with open(key_file(), "rb") as file:
            own = os.fstat(file.fileno()).st_uid == os.getuid()
            key = file.read(KEY_BYTES + 1)
    except OSError:
        return None
    return key if own and len(key) == KEY_BYTES else None


def _new_key() -> bytes | None:
    """Create the key; if several processes do so at once, the first one's is used."""
    path = key_file()
    staging = path.with_name(f".staging-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(staging, path)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            staging.unlink()
    return _key()
