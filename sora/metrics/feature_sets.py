"""Features of a set of clips in a safetensors file with their protocol, which is checked on loading. Never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.gate.files import opened
from sora.gate.tensors import header, refuse_not_finite, write_tensors
from sora.gate.texts import STATE, json_of
from sora.metrics.extractors.features import VideoFeatures
from sora.metrics.protocol import differences
from sora.system import files as storage

FORMAT = "sora features 1"
OTHERS = (b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x89HDF")  # npz and torch.save, npy, pickles
FOREIGN = "; what others published says nothing of clips, pixels and weights, so it cannot be compared: let data=FOLDER write one"


@dataclass(frozen=True)
class FeatureSet:
    """Features (n, d) float32, and the protocol they depend on. more: features of the same clips by other extractors, by `named`."""

    features: Tensor
    protocol: dict[str, Any]
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A hash of the features."""
        return _hash(self.features)


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The fields in which two protocols differ, each as `place.key: value here, value there`; none if they agree."""
    return [str(difference) for difference in differences(one, two)]


def save_features(
    path: Path, features: Float[Tensor, "n d"], protocol: Mapping[str, Any], *, more: Mapping[str, Tensor] | None = None
) -> None:
    """Write a safetensors file; the protocol, which must be JSON, is in its header with a hash of the values. more: features of the same
    clips by other extractors, whose names and hashes are in the header, too."""

    kept = {name: one.detach().to("cpu", torch.float32).contiguous() for name, one in {"features": features, **(more or {})}.items()}
    about = {"format": FORMAT, "protocol": json.dumps(protocol, sort_keys=True), "sha256": _hash(kept["features"])}
    if more:
        about["more"] = json.dumps({name: _hash(kept[name]) for name in sorted(more)})
    with storage.whole_file(path) as staging:
        write_tensors(kept, staging, about)


def named(extractor: VideoFeatures) -> str:
    """An extractor's key among the features of a file: its name and its fingerprint."""
    return f"{extractor.name}:{extractor.fingerprint}"


def load_features(path: Path, expected: Mapping[str, Any]) -> FeatureSet:
    """The features of a file; ValueError if it is damaged or foreign, and, with every differing field, if its protocol is another."""
    found = read_features(path)
    wrong = differing(json.loads(json.dumps(expected)), found.protocol)
    if wrong:
        raise ValueError(f"features in {path} were made by another protocol: {'; '.join(wrong)}; extract them anew")
    return found


def read_features(path: Path) -> FeatureSet:
    """The features of a file of any protocol, which the caller checks. Raises ValueError for a damaged or foreign file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ValueError(f"{path} does not exist; save features of the real set there first")
    with opened(path) as file:
        start = file.read(9)
    if start.startswith(OTHERS) and start[8:] != b"{":  # a header of 640 bytes begins like a pickle
        raise ValueError(f"{path} is no file of sora evaluate, but somebody else's{FOREIGN}")
    header(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(
                    f"{path} holds no features of this version ({about.get('format', 'no format')!r}, not {FORMAT!r}){FOREIGN}"
                )
            features = file.get_tensor("features")
            others = {name: file.get_tensor(name) for name in file.keys() if name != "features"}  # noqa: SIM118
        protocol, hashes = (json_of(said.encode(), limit=STATE) for said in (about["protocol"], about.get("more", "{}")))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it and extract again") from None
    except (KeyError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged: its header does not say what it holds; delete it and extract again") from None
    if features.ndim != 2 or not isinstance(protocol, dict):
        raise ValueError(
            f"{path} is damaged: it holds {list(features.shape)} numbers, and no rows of features; delete it and extract again"
        )
    if _hash(features) != about.get("sha256") or {name: _hash(one) for name, one in others.items()} != hashes:
        raise ValueError(f"{path} is damaged: its values do not have the hash they were written with; delete it and extract again")
    refuse_not_finite({"features": features, **others}, path)
    return FeatureSet(features, protocol, others)


def _hash(features: Tensor) -> str:
    return hashlib.sha256(json.dumps(list(features.shape)).encode() + features.numpy().tobytes()).hexdigest()
