"""The two JSON files of a checkpoint: the form of state.json, and manifest.json, which says which file holds which part of each tensor.

    {"format": 3, "files": {name: {"bytes": …, "sha256": …}},
     "tensors": {kind: {"layouts": [{"shape": …, "type": "F32", "pieces": [[rank, offset, size], …]}, …], "names": {name: 0}}},
     "sha256": of all this}

Tensors that are cut in the same way share a layout, so the file grows with ranks times layouts, not with ranks times tensors. A checkpoint
of one process has no "tensors" (format 1): its safetensors files say what they hold. Format 2, which is only read, has separate "boxes" for
every tensor.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sora.gate.files import read
from sora.gate.forms import (
    Either,
    Fields,
    Form,
    Items,
    Maybe,
    Named,
    Row,
    anything,
    beside,
    digest,
    fitting,
    flag,
    misfit,
    real,
    whole,
    word,
)
from sora.gate.texts import LIST, json_of
from sora.runs.shards import TYPES, Lying, TensorLayout, TensorShard
from sora.system import files as storage

ALONE, BOXES, LISTED = 1, 2, 3
MANIFEST = "manifest.json"
_SHAPE = Items(whole(), most=8)
_LAYOUT = {"shape": _SHAPE, "type": word(*TYPES), "pieces": [Row((whole(), _SHAPE, _SHAPE))]}
FORM = Fields(
    {"format": whole(ALONE, LISTED), "files": Named({"bytes": whole(), "sha256": digest}, name=beside), "sha256": digest},
    may={
        "tensors": Named({"layouts": [_LAYOUT], "names": Named(whole())}),
        "boxes": Named(Named({"shape": _SHAPE, "offsets": Named(_SHAPE)})),
    },
    closed=True,
)
_COUNTS = {"step": whole(0, 10**12), "samples": whole(), "tokens": whole()}
_COUNTERS: dict[str, Form] = dict.fromkeys(("updates", "skipped", "skipped_in_a_row", "returns", "returned_to", "returned_at"), whole())
_SUM = Either([Maybe(real())], Maybe(real()))  # null: not finite, as part of a loss that is not finite may be
_SUMS = {"loss": real(), **dict.fromkeys(("grad_norm", "flops", "data_seconds", "step_seconds"), real(0))}
_WINDOW = Fields({**dict.fromkeys(("steps", "skipped", "samples", "tokens"), whole()), **_SUMS, "parts": Named(Row((_SUM, _SUM)))})
FACTS = Fields(
    {},
    may={
        "counters": Fields(_COUNTS, may=_COUNTERS, closed=True),
        "losses": Items(real(), most=1_000_000),  # of either sign: an objective may be a log-likelihood
        "suspects": [Row((whole(), [whole(0, (1 << 64) - 1)]))],
        "profiles": Named(real(0, above=True)),
        "exported": Fields({"ema": anything}, may={"averaged": flag}),
    },
)
STATE_FORM = Fields({**_COUNTS, "facts": FACTS})  # of state.json
TRAINED = Fields({"counters": FACTS.may["counters"], "window": _WINDOW, "seconds": real(0)})  # of the facts that training goes on from
FILE = re.compile(r"(\w+)(?:-(\d{5,})-of-\d{5,})?\.safetensors")


class Contents(NamedTuple):
    """The content of a manifest. files: "bytes" and "sha256" by file name. tensors (format 3) and boxes (format 2): by kind of tensor."""

    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Any]]
    boxes: Mapping[str, Mapping[str, Any]]

    def of(self, kinds: Collection[str]) -> Contents:
        """The content without files and tensors of other kinds."""
        files = {name: facts for name, facts in self.files.items() if kind_of(name) in ("", *kinds)}
        return Contents(files, *({kind: each[kind] for kind in each if kind in kinds} for each in (self.tensors, self.boxes)))


def kind_of(file: str) -> str:
    """The kind of tensors in a file, from its name; the empty string for other files."""
    match = FILE.fullmatch(file)
    return match[1] if match else ""


def text_of(contents: Contents) -> str:
    """The text of a manifest, in canonical form, so that a changed byte anywhere in it shows."""
    form, more = ALONE, {}
    if contents.tensors:
        form, more = LISTED, {"tensors": {kind: _sorted(found) for kind, found in sorted(contents.tensors.items())}}
    elif any(contents.boxes.values()):
        form, more = BOXES, {"boxes": {kind: dict(sorted(found.items())) for kind, found in sorted(contents.boxes.items()) if found}}
    body = {"format": form, "files": dict(sorted(contents.files.items())), **more}
    how = compact if form == LISTED else spread
    return how({**body, "sha256": hashlib.sha256(how(body).encode()).hexdigest()})


def _sorted(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"layouts": found["layouts"], "names": dict(sorted(found["names"].items()))}


def contradicted(state: Mapping[str, Any]) -> str:
    """The name of a number in a state that differs from its counters; the empty string if all agree."""
    return next((name for name in _COUNTS if state["facts"].get("counters", state)[name] != state[name]), "")


def misfit_of(state: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key of a state that loading and resuming would refuse, and what is wrong with it; None if the state is valid."""
    trained = Fields({"facts": TRAINED}) if "window" in state["facts"] else Fields({})
    if wrong := misfit(state, STATE_FORM) or misfit(state, trained):
        return wrong
    return (other, "is not what its counters say") if (other := contradicted(state)) else None


def spread(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def contents(folder: Path) -> Contents:
    """The content of the manifest in a folder.

    Raises:
        ValueError: there is no manifest, it is damaged, or this version does not know its format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist or is no checkpoint folder")
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is no whole checkpoint")
    try:
        content = read(path, most=LIST.bytes, within=folder)
        said = json_of(content, limit=LIST)
    except (ValueError, RecursionError) as error:
        told = str(error)
        raise ValueError(f"{told if str(path) in told else f'{path} is damaged: {told}'}; use another checkpoint") from None
    if isinstance(said, dict) and type(form := said.get("format")) is int and form > LISTED:
        raise ValueError(f"{path} is damaged, or of format {form}; this version reads {ALONE}, {BOXES} and {LISTED}")
    fitting(said, FORM, str(path), "use another checkpoint")
    found = Contents(said["files"], said.get("tensors", {}), said.get("boxes", {}))
    if text_of(found).encode() != content:
        raise ValueError(f"{path} is damaged: it does not match its own SHA-256; use another checkpoint")
    return found


def layouts(folder: Path, found: Contents, kind: str) -> dict[str, TensorLayout]:
    """The layout of each tensor of a kind, by name, as a manifest of format 3 lists it."""
    files = {int(match[2]): name for name in found.files if (match := FILE.fullmatch(name)) and match[1] == kind and match[2]}
    listed = found.tensors[kind]
    try:
        made = []
        for one in listed["layouts"]:
            pieces = tuple(Lying(files[rank], tuple(offset), tuple(size)) for rank, offset, size in one["pieces"])
            made.append(TensorLayout(tuple(one["shape"]), TYPES[one["type"]], pieces))
        return {name: made[number] for name, number in listed["names"].items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: what it says of {kind} makes no sense ({error!r}); use another") from None


# ---- what every rank tells the first rank


def told(names: Sequence[str], pieces: Mapping[str, TensorShard]) -> dict[str, Any]:
    """This rank's pieces, as JSON for `merged`: each box with the indices of its tensors in `names`, which are the same on all ranks."""
    boxes: dict[tuple[Any, ...], list[int]] = {}
    for number, name in enumerate(names):
        if name in pieces:
            boxes.setdefault(pieces[name].box, []).append(number)
    return {"of": _hash(names), "boxes": [[*box, numbers] for box, numbers in boxes.items()]}


def merged(names: Sequence[str], said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest entry of a kind ("layouts" and "names"), from what each rank `told`.

    Raises:
        ValueError: a rank has other tensors than the first one.
    """
    # Tensors of one class have the same pieces on all ranks so far. A class is an earlier class with one more piece; class 0 has none.
    classes, grown = np.zeros(len(names), dtype=np.int64), [(0, 0, [])]
    for rank, one in enumerate(said):
        if one["of"] != _hash(names):
            raise ValueError(f"rank {rank} has other tensors to save than the first one; start all of them alike, from one checkout")
        for *box, numbers in one["boxes"]:
            before, which = np.unique(classes[numbers], return_inverse=True)
            classes[numbers] = len(grown) + which
            grown += [(int(number), rank, box) for number in before]
    unwritten = [name for name, last in zip(names, classes.tolist(), strict=True) if not last]
    assert not unwritten, f"no rank writes {unwritten[:3]}, of {len(names)} tensors"
    ends, which = np.unique(classes, return_inverse=True)
    return {"layouts": [_layout(grown, int(end)) for end in ends], "names": dict(zip(names, which.tolist(), strict=True))}


def _layout(grown: Sequence[tuple[int, int, list[Any]]], number: int) -> dict[str, Any]:
    pieces, facts = [], []
    while number:
        number, rank, (shape, kind, offset, size) = grown[number]
        pieces.append([rank, offset, size])
        facts.append((shape, kind))
    assert all(each == facts[0] for each in facts), f"ranks hold pieces of what is not one tensor: {facts[:3]}"
    return {"shape": facts[0][0], "type": facts[0][1], "pieces": pieces[::-1]}


def _hash(names: Sequence[str]) -> str:
    return storage.text_hash("\n".join(names))
