"""Whether a file that names other places may have them read: only what this user wrote, or what this command line allows.

A run, an index or a dataset may be a stranger's. What it names outside its own folder (a folder, a file, a URL, a model of the hub) is
read in two cases only: the file bears this user's seal, or `--allow PLACE` stands on the command line. A seal is a keyed hash
(HMAC-SHA-256, RFC 2104) over what the file says; its key lies in this user's state folder and leaves it nowhere, so that no one else's
file has one. What is allowed stands in the variable SORA_ALLOW, a place a line, which worker processes inherit.
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
    """Where this user's key lies: in XDG_STATE_HOME, which is ~/.local/state where nothing else is said."""
    said = os.environ.get("XDG_STATE_HOME", "")
    return (Path(said) if os.path.isabs(said) else Path("~/.local/state").expanduser()) / "sora" / "seal.key"


def seal(*said: Any) -> str | None:
    """This user's seal on what a file says, plain JSON; hexadecimal. None where the key can neither be read nor made (a home that is
    read-only)."""
    key = _key() or _new_key()
    return None if key is None else _hash(key, said)


def sealed(found: object, *said: Any) -> bool:
    """Whether `found` is this user's seal on that."""
    return isinstance(found, str) and found.isascii() and (key := _key()) is not None and hmac.compare_digest(found, _hash(key, said))


def allowed(place: str | Path) -> bool:
    """Whether the command line allows a folder, file, URL or model of the hub (hf://OWNER/NAME), or what holds it."""
    wanted = _parts(str(place))
    return wanted is not None and any(_parts(line) == wanted[: len(_parts(line) or ())] for line in _lines() if _parts(line))


@contextmanager
def allowing(places: Iterable[str]) -> Iterator[None]:
    """Allow these places, too, in this process and in those that it starts."""
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
    """A place as it is named from any folder. Raises ValueError for what names none."""
    if not place.strip() or "\n" in place:
        raise ValueError(f"--allow {place!r} names no place; it is a folder, a file, a URL or a model of the hub, hf://OWNER/NAME")
    credentials.refuse(place, said_by="--allow")
    return place if "://" in place else os.path.abspath(place)


def within(path: Path | str, folder: Path | str) -> bool:
    """Whether a path lies in a folder once links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def words(*places: str | Path) -> str:
    """The words that allow these places on a command line."""
    import shlex

    return " ".join(f"--allow {shlex.quote(str(place))}" for place in places)


def _lines() -> list[str]:
    return [line for line in os.environ.get(ALLOW, "").splitlines() if line.strip()]


def _parts(place: str) -> tuple[str, ...] | None:
    """A place from its root on, so that what holds another begins like it; None for one that climbs."""
    scheme, found, rest = place.partition("://")
    if not found:
        return ("", *Path(os.path.realpath(place)).parts)
    parts = tuple(part for part in rest.split("/") if part)
    return None if not parts or ".." in parts or "." in parts else (scheme.lower(), *parts)


def _hash(key: bytes, said: tuple[Any, ...]) -> str:
    return hmac.digest(key, json.dumps(said, sort_keys=True).encode(), "sha256").hex()


def _key() -> bytes | None:
    """The key; None where there is none, or where it is somebody else's."""
    try:
        with open(key_file(), "rb") as file:
            own = os.fstat(file.fileno()).st_uid == os.getuid()
            key = file.read(KEY_BYTES + 1)
    except OSError:
        return None
    return key if own and len(key) == KEY_BYTES else None


def _new_key() -> bytes | None:
    """Make the key; of several processes that do at once, the first one's holds."""
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
