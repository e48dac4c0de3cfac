"""Cache of caption states on disk, keyed by the caption's SHA-256 and the encoder's fingerprint.

text-<fingerprint, 8 digits>.json                 manifest: the encoder, and the other files with their hashes; written last
text-<fingerprint, 8 digits>-000000.safetensors   concatenated float16 states of many captions, with each caption's hash and end
text-<fingerprint, 8 digits>-places.npy           table of each caption's position, sorted by hash; memory-mapped, 48 bytes per caption
text-<fingerprint, 8 digits>-part-3.json, ...     files of process 3 of several that encode at the same time, until they are merged
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sora.gate.forms import Fields, Maybe, digest, fitting, matching, some, text
from sora.gate.forms import count as whole
from sora.gate.tensors import finite, header, write_tensors
from sora.gate.texts import LIST, read_json
from sora.system.files import NotEncoded, file_hash, text_hash, whole_file, write_json
from sora.text.encoder import TextEncoder
from sora.text.limits import TruncatedCaptions, cuts, summed

VERSION = 2
_STATES, _HASHES, _ENDS = "states", "hashes", "ends"
_PLACES = np.dtype([("first", "<u8"), ("rest", "V24"), ("shard", "<i4"), ("length", "<i4"), ("start", "<i8")])
_FILE = re.compile(r"text-[\w-]{1,8}(-part-\d+)?-(\d{6,}\.safetensors|places\.npy)")
_NAME = matching(_FILE.pattern, "the name of a file of a text cache beside it")
_CUT = Fields({"key": text, "tokens": some, "captions": whole, "of": whole, "first": text, "lost": text}, may={"most": whole}, closed=True)
_ENTRY = Fields({"file": _NAME, "sha256": digest, "bytes": whole, "captions": whole}, may={"cut": [_CUT]})
_TABLE = {"file": _NAME, "sha256": digest, "shards": whole}
FORM = Fields({"version": some, "fingerprint": text, "shards": [_ENTRY]}, may={"places": Maybe(_TABLE), "encoder": text})  # manifest
_HASHED_AT_ONCE = 1 << 30  # bytes of states up to which all hashes are checked when the cache is opened; above, on each file's first read


def manifest_path(folder: Path | str, fingerprint: str) -> Path:
    return Path(folder) / f"text-{fingerprint[:8]}.json"


def extend(
    folder: Path | str,
    encoder: TextEncoder,
    captions: Iterable[str],
    *,
    shard: int,
    part: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Encode the captions that are not in the cache yet, and return their number.

    The empty caption is always added, because guidance needs it. An interrupted call leaves a valid cache with fewer captions.
    shard: number of captions per file. part: number of this process, if several encode at the same time; the next call without a part
    merges their files into the cache. progress: called after each file with its number of captions.
    """
    path = manifest_path(folder, encoder.fingerprint)
    if part is None:
        _join(path, encoder)
    manifest = _read(path, encoder.fingerprint) if path.is_file() else _new(encoder)
    known, listed = [_places(path, manifest)], {shard["file"] for shard in manifest["shards"]}
    if part is not None:
        path = path.with_name(f"{path.stem}-part-{part}.json")
        manifest = _read(path, encoder.fingerprint) if path.is_file() else _new(encoder)
        known.append(_places(path, manifest))
    missing = {key: text for text in ("", *captions) if all(_found(places, key := text_hash(text)) is None for places in known)}
    names = (name for number in count(len(manifest["shards"])) if (name := f"{path.stem}-{number:06d}.safetensors") not in listed)
    for first in range(0, len(missing), shard):
        texts = list(missing.items())[first : first + shard]
        states = encoder.encode([text for _, text in texts])
        name = next(names)
        whole = torch.cat(states).half()
        if not whole.isfinite().all():
            raise ValueError(f"{encoder.name} gives states that float16 cannot hold or that are not finite; the cache would be useless")
        hashes = torch.frombuffer(bytearray(b"".join(bytes.fromhex(key) for key, _ in texts)), dtype=torch.uint8).view(-1, 32)
        ends = torch.tensor([len(state) for state in states]).cumsum(0)
        with whole_file(path.with_name(name)) as staging:
            write_tensors({_STATES: whole, _HASHES: hashes, _ENDS: ends}, staging)
        size = path.with_name(name).stat().st_size
        cut = [asdict(one) for one in cuts(encoder.limits(), [text for _, text in texts])]
        entry = {"file": name, "sha256": file_hash(path.with_name(name)), "bytes": size, "captions": len(texts), "cut": cut}
        manifest["shards"].append(entry)
        write_json(path, manifest)
        if progress:
            progress(len(texts))
    if missing or "places" not in manifest:
        _keep_places(path, manifest)
    return len(missing)


def cut_in(path: Path) -> list[TruncatedCaptions] | None:
    """Reports of truncated captions from the manifest `path`; None if a file of the cache is older than such reports."""
    described = read_json(path, limit=LIST, within=path.parent)
    named = described.get("fingerprint") if isinstance(described, dict) else None
    return _cut(_read(path, str(named)))


def _cut(manifest: dict[str, Any]) -> list[TruncatedCaptions] | None:
    shards = manifest["shards"]
    if any("cut" not in shard for shard in shards):
        return None
    return summed(
        [{cut["key"]: TruncatedCaptions(**cut) for cut in shard["cut"]} for shard in shards], of=sum(shard["captions"] for shard in shards)
    )


def _join(path: Path, encoder: TextEncoder) -> None:
    """Merge the manifests of all parts into the manifest of the cache, and delete them."""
    parts = sorted(path.parent.glob(f"{path.stem}-part-*.json"))
    manifest = _read(path, encoder.fingerprint) if path.is_file() else _new(encoder)
    listed = {shard["file"] for shard in manifest["shards"]}
    found = [shard for part in parts for shard in _read(part, encoder.fingerprint)["shards"] if shard["file"] not in listed]
    if found:
        manifest["shards"] += found
        _keep_places(path, manifest)
    for part in parts:
        part.unlink()
        part.with_name(f"{part.stem}-places.npy").unlink(missing_ok=True)


def _encoder(path: Path) -> str:
    """Name of the encoder of a cache, for an error message."""
    described = read_json(path, limit=LIST, within=path.parent)
    return str(described.get("encoder")) if isinstance(described, dict) else "nobody"


def _new(encoder: TextEncoder) -> dict[str, Any]:
    return {"version": VERSION, "encoder": encoder.name, "fingerprint": encoder.fingerprint, "shards": []}


def _read(path: Path, fingerprint: str) -> dict[str, Any]:
    manifest = read_json(path, limit=LIST, within=path.parent)
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION or manifest.get("fingerprint") != fingerprint:
        raise ValueError(f"{path} is a text cache of another encoder or version; move it away and run sora encode again")
    return fitting(manifest, FORM, str(path), "delete it and run sora encode again")


# ---- table of positions: which file and rows hold each caption


def _places(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Memory-map the table of positions; rebuild it from the files of states if `extend` was interrupted before writing it."""
    kept = manifest.get("places")
    if kept is None or kept["shards"] != len(manifest["shards"]):
        return _gathered(path, manifest)
    table = path.with_name(kept["file"])
    damaged = ValueError(f"{table} is missing or damaged; delete {path} and run sora encode again")
    if not table.is_file() or (table.stat().st_size <= _HASHED_AT_ONCE and file_hash(table) != kept["sha256"]):
        raise damaged
    try:
        found = np.load(table, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):  # a truncated table that was too large to hash
        raise damaged from None
    if found.dtype != _PLACES or len(found) != sum(shard["captions"] for shard in manifest["shards"]):
        raise damaged
    return found


def _gathered(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    parts = [np.zeros(0, dtype=_PLACES)]
    for number, shard in enumerate(manifest["shards"]):
        with _opened(path.with_name(shard["file"])) as file:
            hashes, ends = file.get_tensor(_HASHES).numpy(), file.get_tensor(_ENDS).numpy()
        part = np.zeros(len(ends), dtype=_PLACES)
        part["first"] = np.ascontiguousarray(hashes[:, :8]).view(">u8")[:, 0]
        part["rest"] = np.ascontiguousarray(hashes[:, 8:]).view("V24")[:, 0]
        part["shard"], part["start"] = number, np.concatenate([[0], ends[:-1]])
        part["length"] = np.diff(ends, prepend=0)
        parts.append(part)
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["first"], kind="stable")]


def _keep_places(path: Path, manifest: dict[str, Any]) -> None:
    table = path.with_name(f"{path.stem}-places.npy")
    whole = _gathered(path, manifest)
    with whole_file(table) as staging, open(staging, "wb") as file:
        np.save(file, whole, allow_pickle=False)
    manifest["places"] = {"file": table.name, "sha256": file_hash(table), "shards": len(manifest["shards"])}
    write_json(path, manifest)


def _found(places: np.ndarray, key: str) -> tuple[int, int, int] | None:
    """(index of the file, first row, number of rows) of the caption with this hash; None if it is not in the table."""
    wanted, rest = int(key[:16], 16), bytes.fromhex(key[16:])
    at = bisect_left(places["first"], wanted)  # np.searchsorted would copy the strided column into memory
    while at < len(places) and int(places["first"][at]) == wanted:
        if places["rest"][at].tobytes() == rest:
            return int(places["shard"][at]), int(places["start"][at]), int(places["length"][at])
        at += 1
    return None


def _opened(file: Path) -> Any:
    held = header(file, within=file.parent).tensors
    shapes = [held[name].shape if name in held else () for name in (_STATES, _HASHES, _ENDS)]
    if len(shapes[0]) != 2 or shapes[1] != (*shapes[2], 32) or len(shapes[2]) != 1 or held[_STATES].dtype != "F16":
        raise ValueError(f"{file} is damaged: its tensors are none of a text cache; run sora encode again")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or damaged: {error}") from None


class TextCache:
    """Reads the states of captions from a cache. Raises ValueError for a missing or changed file, or a caption that is not in the cache.

    cut: reports of the captions that the encoder truncated; None for a cache that is older than such reports.

    The hashes of the files of states are checked when the cache is opened if the files hold 1 GiB or less in total; otherwise each file is
    checked when this process first reads it.
    """

    def __init__(self, folder: Path | str, fingerprint: str, *, verify: bool = True) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        path = manifest_path(folder, fingerprint)
        if not path.is_file():
            others = [_encoder(other) for other in sorted(self.folder.glob("text-????????.json"))]
            there = f"there are those of {', '.join(others)}: choose that text=, or" if others else "there are none:"
            raise NotEncoded(f"{folder} has no captions encoded by this text encoder ({fingerprint[:8]}); {there} run sora encode", folder)
        manifest = _read(path, fingerprint)
        self._shards, self.cut = manifest["shards"], _cut(manifest)
        small = sum(shard["bytes"] for shard in self._shards) <= _HASHED_AT_ONCE
        for shard in self._shards if verify else ():
            self._check(shard, hashed=small)
        self._unread = set() if small else set(range(len(self._shards)))
        self._places = _places(path, manifest)
        self._open: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.fingerprint)

    def __contains__(self, caption: str) -> bool:
        return _found(self._places, text_hash(caption)) is not None

    def count(self, caption: str) -> int:
        """Number of tokens of a caption."""
        return self._place(caption)[2]

    def _place(self, caption: str) -> tuple[int, int, int]:
        """(index of the file, first row, number of rows) of a caption. Raises ValueError if it is not in the cache."""
        place = _found(self._places, text_hash(caption))
        if place is None:
            raise ValueError(f"the caption {caption[:80]!r} is not among the cached ones of {self.folder}; run sora encode again")
        return place

    def states(self, caption: str) -> Float[Tensor, "_ D"]:
        """States of a caption, float32, one row per token."""
        shard, start, length = self._place(caption)
        if shard not in self._open:
            if shard in self._unread:
                self._check(self._shards[shard], hashed=True)
            self._open[shard] = _opened(self.folder / self._shards[shard]["file"]).__enter__().get_slice(_STATES)
        found = self._open[shard][start : start + length].float()
        if len(found) != length or not finite(found):
            raise ValueError(f"{self.folder / self._shards[shard]['file']} does not hold what its table says; run sora encode again")
        return found

    def _check(self, shard: dict[str, Any], *, hashed: bool) -> None:
        file = self.folder / shard["file"]
        if not file.is_file() or file.stat().st_size != shard["bytes"] or (hashed and file_hash(file) != shard["sha256"]):
            path = manifest_path(self.folder, self.fingerprint)
            raise ValueError(f"{file} is missing or damaged; delete {path} and run sora encode again")


def _reopen(folder: Path, fingerprint: str) -> TextCache:
    """Reopen a cache in a data-loading worker without checking hashes again: the main process has checked them."""
    return TextCache(folder, fingerprint, verify=False)
