"""Everything that a score depends on besides the videos under test. Scores may be compared only if their protocols are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

NOTHING = object()  # the value of a field that one side does not have
LONGEST = 80  # letters of a value in a message


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The protocol of a score. Every field holds plain JSON; None if it does not apply.

    dataset: the real videos: fingerprint, split, number. real, generated: how clips are taken from the videos of either side (`ClipPolicy`:
    frames, stride, start), their number, sizes and rates. prompts: which ones. pixels: size that clips are resized to, kernel, crop,
    quantisation, codec of the generated videos. extractor: name, hash of its weights, its input. distances: ddof, repeats of the bootstrap,
    permutations, neighbours. sampling: sampler, steps, guidance, shift; None for videos from files. measures: conventions of the other
    scores. seed: of prompts, noise, and all draws.
    """

    dataset: Mapping[str, Any]
    real: Mapping[str, Any] | None
    generated: Mapping[str, Any] | None
    prompts: Mapping[str, Any] | None
    pixels: Mapping[str, Any]
    extractor: Mapping[str, Any] | None
    distances: Mapping[str, Any] | None
    sampling: Mapping[str, Any] | None
    measures: Mapping[str, Any] | None
    seed: int

    @property
    def sha256(self) -> str:
        """A hash of all fields, whatever their order."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Protocol:
        """The protocol that `to_json` wrote. Raises ValueError with the missing or unknown fields, as of another version."""
        known = {field.name for field in fields(cls)}
        wrong = [f"it lacks {', '.join(sorted(known - set(values)))}"] if known - set(values) else []
        wrong += [f"it has {', '.join(sorted(set(values) - known))}"] if set(values) - known else []
        if wrong:
            raise ValueError(f"a protocol of another version: {'; '.join(wrong)}")
        return cls(**values)


@dataclass(frozen=True)
class ProtocolDifference:
    """A field, by its dotted path, with its two values; NOTHING on the side that does not have it."""

    place: str
    here: Any
    there: Any

    def __str__(self) -> str:
        told = ["nothing" if value is NOTHING else json.dumps(value) for value in (self.here, self.there)]
        told = [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in told]
        return f"{self.place}: {told[0]} here, {told[1]} there"


def differences(one: Mapping[str, Any], two: Mapping[str, Any], place: str = "") -> list[ProtocolDifference]:
    """The fields in which two protocols differ; none if they agree. A mapping whose keys are no names (counts of shapes) is one field."""
    found = []
    for key in [*one, *(key for key in two if key not in one)]:
        here, there = one.get(key, NOTHING), two.get(key, NOTHING)
        if isinstance(here, Mapping) and isinstance(there, Mapping) and all(str(name).isidentifier() for name in [*here, *there]):
            found += differences(here, there, f"{place}{key}.")
        elif here is NOTHING or there is NOTHING or here != there:
            found.append(ProtocolDifference(f"{place}{key}", here, there))
    return found


def places(protocol: Mapping[str, Any], within: str = "") -> list[str]:
    """The dotted paths of all fields, each group before its members: `sampling`, `sampling.steps`."""
    found = []
    for key, value in protocol.items():
        found.append(f"{within}{key}")
        if isinstance(value, Mapping) and all(str(name).isidentifier() for name in value):
            found += places(value, f"{within}{key}.")
    return found


def allowed(place: str, names: Sequence[str]) -> bool:
    """Whether a field is one of `names`, or lies within one: `sampling.steps` within `sampling`."""
    return any(place == name or place.startswith(f"{name}.") for name in names)


def preset_lines(preset: Mapping[str, Any]) -> list[str]:
    """Lines on the published protocol of a preset, and why its values may not be comparable with published ones. None without a preset."""
    if not preset:
        return []
    changed = f", but {', '.join(preset['changed'])} changed: not what was published" if preset.get("changed") else ""
    lines = [f"measured by the protocol of {preset['name']}{changed}"]
    if preset.get("departs"):
        lines += [f"beware: {preset['departs']}; its values compare with one another, not with published ones"]
    return lines
