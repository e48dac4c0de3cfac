"""Reads the claims of origin that a video carries (C2PA): whether a model made it, and whether it may be used for training.

The claims are read with the package c2pa-python, an extra. Without it a file that carries a manifest is told apart by its bytes, and its
claims are unread, which is not the same as having none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sora.gate.files import opened
from sora.system.terminal import counted

INSTALL = "pip install 'c2pa-python>=0.38,<0.39', which is the extra sora[safety]"
_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # the UUID of a C2PA box in an mp4 (C2PA 2.4, A.5.1)
_JUMBF = b"c2pa"  # the type of a manifest store in other containers
_LOOK = 1 << 20  # bytes read at once
_FORMATS = {  # the kinds of container whose claims c2pa-python reads, by the bytes at an offset
    "video/mp4": (4, (b"ftyp",)),
    "video/avi": (8, (b"AVI ",)),
}
_MADE = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia")  # of digitalSourceType (IPTC)
_TRAINING = ("ai_training", "ai_generative_training")  # entries of a training-mining assertion (CAWG 1.1), without their prefix
_MOST = 1 << 20  # characters of a manifest


@dataclass(frozen=True)
class OriginClaims:
    """The claims of origin of a file. state: "none", "unread" (a manifest that this machine cannot read), "valid", "trusted" or "invalid"
    (a manifest that does not fit the file). training: "" (not said), "allowed", "constrained" or "notAllowed", the strictest that any entry
    for training says. synthetic: whether a claim says that a model made it, or a part of it. why: of a state that is "unread"."""

    state: str = "none"
    training: str = ""
    synthetic: bool = False
    why: str = ""

    def described(self) -> dict[str, Any]:
        return asdict(self)


NO_CLAIMS = OriginClaims()


def claims_of(path: Path) -> OriginClaims:
    """The claims of origin that a video file carries. Nothing is fetched from a network; claims that point elsewhere are unread."""
    if not _carries(path):
        return NO_CLAIMS
    kind = _format(path)
    if kind is None:
        return OriginClaims("unread", why="its container's claims are not read here")
    try:
        import c2pa
    except ImportError:
        return OriginClaims("unread", why=f"it carries a C2PA manifest, and reading it needs {INSTALL}")
    settings = c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
    try:
        with open(path, "rb") as file, c2pa.Reader(kind, file, context=c2pa.Context(settings)) as reader:
            said = reader.json()
    except c2pa.C2paError as error:
        return OriginClaims("unread", why=f"its C2PA manifest is damaged: {str(error)[:200]}")
    if len(said) > _MOST:
        return OriginClaims("unread", why=f"its C2PA manifest has {counted(len(said), 'character')}, and {_MOST:,} are the most")
    return read_manifests(json.loads(said))


def read_manifests(store: Mapping[str, Any]) -> OriginClaims:
    """The claims in a manifest store as c2pa-python gives it. The active manifest and all those of its ingredients count: what a part was
    made by, or forbids, holds for the whole."""
    manifests = list((store.get("manifests") or {}).values())
    said = [entry for manifest in manifests for entry in _training(manifest)]
    order = ("allowed", "constrained", "notAllowed")
    uses = [use if use in order else "notAllowed" for use in said]  # a word of a later standard is taken for the strictest
    strictest = max(uses, key=order.index, default="")
    state = {"Valid": "valid", "Trusted": "trusted"}.get(str(store.get("validation_state")), "invalid")
    return OriginClaims(state, strictest, any(_made(manifest) for manifest in manifests))


def _assertions(manifest: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    for one in manifest.get("assertions") or ():
        if str(one.get("label", "")).startswith(prefix) and isinstance(one.get("data"), Mapping):
            yield one["data"]


def _training(manifest: Mapping[str, Any]) -> Iterator[str]:
    for data in _assertions(manifest, ("cawg.training-mining", "c2pa.training-mining")):
        for name, entry in (data.get("entries") or {}).items():
            if str(name).rpartition(".")[2] in _TRAINING and isinstance(entry, Mapping):
                yield str(entry.get("use"))


def _made(manifest: Mapping[str, Any]) -> bool:
    actions = (action for data in _assertions(manifest, ("c2pa.actions",)) for action in data.get("actions") or ())
    kinds = (str(action.get("digitalSourceType", "")) for action in actions if isinstance(action, Mapping))
    return any(kind.rpartition("/")[2] in _MADE for kind in kinds)


def _format(path: Path) -> str | None:
    with opened(path) as file:
        head = file.read(64)
    return next((kind for kind, (place, marks) in _FORMATS.items() if head[place : place + 4] in marks), None)


def _carries(path: Path) -> bool:
    """Whether a file holds the mark of a manifest. In an mp4 only the boxes of its top level are looked at, so a film is not read whole."""
    with opened(path) as file:
        head = file.read(12)
        if head[4:8] == b"ftyp":
            return _boxed(file)
        if head[:4] == b"RIFF":
            return any(_JUMBF.upper() == mark.upper() for mark in _riff(file))
    return False


def _boxed(file: Any) -> bool:
    place, end = 0, file.seek(0, 2)
    for _ in range(100_000):  # a film in fragments has thousands of boxes
        file.seek(place)
        head = file.read(32)
        if len(head) < 8:
            return False
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        body = 8
        if size == 1:
            size, body = int.from_bytes(head[8:16], "big"), 16
        if kind == b"uuid" and head[body : body + 16] == _BOX:
            return True
        place += size if size >= body else end
        if size == 0 or place >= end:
            return False
    return False


def _riff(file: Any) -> Iterator[bytes]:
    """The names of the chunks of a RIFF file's top level."""
    place, end = 12, file.seek(0, 2)
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        yield head[:4]
        place += 8 + int.from_bytes(head[4:], "little") + (int.from_bytes(head[4:], "little") & 1)
