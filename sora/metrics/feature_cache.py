"""A cache of clips' features by the clips' content: shared by all checkpoints, presets and ranks, and by the next run after a crash.

A folder of small safetensors files. A file's name follows from its content, so concurrent processes never write the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.gate.forms import Fields, fitting, text
from sora.gate.tensors import header, write_tensors
from sora.gate.texts import STATE, json_of
from sora.system import files as storage

FORMAT = "sora feature cache 2"  # of 1 the hash did not cover the keys; its folders have other names, and are not read
FORM = Fields({"format": text, "about": text, "keys": [text], "sha256": text})  # the form of a file's metadata


class FeatureCache:
    """Features of one extractor. folder: of all caches. about: JSON of all that features depend on besides the clip (extractor, size, ...).

    Keys identify clips by their content. Call `flush` now and then: a process that is killed loses features `put` since.
    """

    def __init__(self, folder: Path, *, about: Mapping[str, Any], dimension: int) -> None:
        identity = hashlib.sha256(json.dumps([FORMAT, about], sort_keys=True).encode()).hexdigest()
        self.folder, self.dimension = Path(folder) / identity[:24], dimension
        self.about = json.dumps(about, sort_keys=True)
        self._found: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._found or key in self._new

    def put(self, key: str, features: Float[Tensor, "d"]) -> None:
        if features.shape != (self.dimension,):
            raise ValueError(f"features of shape {tuple(features.shape)}; the extractor gives {self.dimension} a clip")
        self._new[key] = features.detach().to("cpu", torch.float32).clone()

    @property
    def waiting(self) -> int:
        """How many features are not on the disk yet."""
        return len(self._new)

    def flush(self) -> None:
        """Write the new features, whole or not at all."""
        if not self._new:
            return

        keys = sorted(self._new)
        values = torch.stack([self._new[key] for key in keys])
        name = f"{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:24]}.safetensors"
        about = json.dumps({"format": FORMAT, "about": self.about, "keys": keys, "sha256": _hash(keys, values)})
        with storage.whole_file(self.folder / name) as staging:
            write_tensors({"features": values}, staging, {"sora": about})  # one entry: several would be written in no fixed order
        self._read.add(name)
        self._found |= self._new
        self._new = {}

    def refresh(self) -> None:
        """Read the files that other processes, or earlier ones, have written. Raises ValueError for a damaged file."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            if path.name in self._read or path.name.startswith(storage.STAGING):
                continue
            self._found |= _load(path, self.about)
            self._read.add(path.name)

    def get(self, keys: Sequence[str]) -> Float[Tensor, "n d"]:
        """Features in the order of the keys. Raises KeyError for one that was never put."""
        rows = [self._new[key] if key in self._new else self._found[key] for key in keys]
        return torch.stack(rows) if rows else torch.zeros(0, self.dimension, dtype=torch.float32)


def _load(path: Path, about: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        said = header(path, within=path.parent).about
        told = fitting(json_of(said.get("sora", "{}").encode(), limit=STATE), FORM, str(path))
        with safe_open(path, framework="pt") as file:
            values, keys = file.get_tensor("features"), told["keys"]
        if values.ndim != 2 or not values.is_floating_point():
            raise ValueError(f"its features are {tuple(values.shape)}")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, its features are made again") from None
    if told.get("format") != FORMAT or told.get("about") != about or told.get("sha256") != _hash(keys, values) or len(keys) != len(values):
        raise ValueError(f"{path} is damaged or foreign: its values are not those it was written with; delete it, they are made again")
    return dict(zip(keys, values, strict=True))


def _hash(keys: Sequence[str], values: Tensor) -> str:
    """A hash of keys and values, since values under wrong keys are as bad as wrong values."""
    return hashlib.sha256(json.dumps(keys).encode() + values.numpy().tobytes()).hexdigest()
