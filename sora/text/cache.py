"""Caption states on disk, keyed by the caption's SHA-256 and the encoder's fingerprint.

text-<fingerprint, 8 digits>.json                 which caption lies where; written last
text-<fingerprint, 8 digits>-000000.safetensors   states of many captions end to end, float16
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sora.storage import file_hash, read_json, text_hash, whole_file, write_json
from sora.text.encoder import TextEncoder

VERSION = 1
_STATES = "states"


def manifest_path(folder: Path | str, fingerprint: str) -> Path:
    return Path(folder) / f"text-{fingerprint[:8]}.json"


def extend(
    folder: Path | str, encoder: TextEncoder, captions: Iterable[str], *, shard: int, progress: Callable[[int], None] | None = None
) -> int:
    """Encode the captions that the cache does not hold yet, `shard` to a file; how many they were. A cut leaves a whole, shorter cache.

    progress: called with the number of captions after each file. The empty caption, which guidance needs, is always among them.
    """
    path = manifest_path(folder, encoder.fingerprint)
    manifest = _read(path, encoder.fingerprint) if path.is_file() else _new(encoder)
    known = manifest["captions"]
    missing = {key: text for text in ("", *captions) if (key := text_hash(text)) not in known}
    for first in range(0, len(missing), shard):
        texts = list(missing.items())[first : first + shard]
        states = encoder.encode([text for _, text in texts])
        name = f"{path.stem}-{len(manifest['shards']):06d}.safetensors"
        lengths = [len(state) for state in states]
        whole = torch.cat(states).half()
        if not whole.isfinite().all():
            raise ValueError(f"{encoder.name} gives states that float16 cannot hold or that are not finite; the cache would be useless")
        with whole_file(path.with_name(name)) as staging:
            save_file({_STATES: whole}, staging)
        manifest["shards"].append({"file": name, "sha256": file_hash(path.with_name(name))})
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for (key, _), start, length in zip(texts, starts, lengths, strict=False):
            known[key] = [len(manifest["shards"]) - 1, start, length]
        write_json(path, manifest)
        if progress:
            progress(len(texts))
    return len(missing)


def _new(encoder: TextEncoder) -> dict[str, Any]:
    return {"version": VERSION, "encoder": encoder.name, "fingerprint": encoder.fingerprint, "shards": [], "captions": {}}


def _read(path: Path, fingerprint: str) -> dict[str, Any]:
    manifest = read_json(path)
    if manifest.get("version") != VERSION or manifest.get("fingerprint") != fingerprint:
        raise ValueError(f"{path} is a text cache of another encoder or version; move it away and run sora encode again")
    return manifest


class TextCache:
    """States of captions by their text. A missing or changed file, and a caption that was never encoded, are ValueErrors."""

    def __init__(self, folder: Path | str, fingerprint: str, *, verify: bool = True) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        path = manifest_path(folder, fingerprint)
        if not path.is_file():
            others = [read_json(other).get("encoder") for other in sorted(self.folder.glob("text-????????.json"))]
            raise ValueError(
                f"{folder} has no cached captions of this text encoder ({fingerprint[:8]}; there are caches of: {others or 'none'});"
                f" run sora encode data={folder} with the same text=… and settings"
            )
        manifest = _read(path, fingerprint)
        self._places: dict[str, list[int]] = manifest["captions"]
        self._shards = [self.folder / shard["file"] for shard in manifest["shards"]]
        for file, shard in zip(self._shards, manifest["shards"], strict=True):
            if not file.is_file() or (verify and file_hash(file) != shard["sha256"]):
                raise ValueError(f"{file} is missing or damaged; delete {path} and run sora encode again")
        self._open: dict[int, Any] = {}

    def __reduce__(self):
        return _reopen, (self.folder, self.fingerprint)

    def __contains__(self, caption: str) -> bool:
        return text_hash(caption) in self._places

    def count(self, caption: str) -> int:
        """Its tokens."""
        return self._place(caption)[2]

    def _place(self, caption: str) -> list[int]:
        """Its shard, first row there, and rows."""
        place = self._places.get(text_hash(caption))
        if place is None:
            raise ValueError(f"the caption {caption[:80]!r} is not among the cached ones of {self.folder}; run sora encode again")
        return place

    def states(self, caption: str) -> Float[Tensor, "_ D"]:
        """float32, one row per token."""
        shard, start, length = self._place(caption)
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(self._shards[shard], framework="pt").__enter__().get_slice(_STATES)
            except SafetensorError as error:
                raise ValueError(f"{self._shards[shard]} is damaged: {error}") from None
        return self._open[shard][start : start + length].float()


def _reopen(folder: Path, fingerprint: str) -> TextCache:
    """In a worker: the main process has compared the hashes."""
    return TextCache(folder, fingerprint, verify=False)
