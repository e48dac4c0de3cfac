"""Checks that clips have captions that a run can show: of a sample of clips before the run starts, of each clip when it is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sora.data.index.index import Index
from sora.data.loading.quarantine import BadClip, of_the_clip
from sora.system.files import NotEncoded, called
from sora.system.terminal import counted
from sora.text.all_captions import AllCaptions
from sora.text.cache import TextCache
from sora.text.encoder import TextEncoder
from sora.text.limits import cuts, with_fill

DENSE = "dense"  # the kind of the most detailed captions
_LOOKED_AT = 64  # clips of each dataset; enough, as missing states are usually those of most clips
_COUNTED = 2_000  # clips that are counted of a dataset whose dataset.json has no counts


@dataclass(frozen=True)
class Captioned:
    """How many clips of some datasets have a caption of each kind, and how many have none, counted over `looked` of all `clips`."""

    clips: int
    looked: int
    without: int
    kinds: Mapping[str, int]

    @property
    def listed(self) -> str:
        """The kinds of captions as a text."""
        return f"their kinds are {', '.join(sorted(self.kinds))}" if self.kinds else "they have no captions at all"

    def lines(self, weights: Mapping[str, float] | None) -> list[str]:
        """Lines for a run that shows captions by these weights of kinds; none if every clip has a caption that the run shows."""
        of, share = f"of {counted(self.looked, 'clip')}" + ("" if self.looked == self.clips else " that were looked at"), self.looked or 1
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items()))
        have, are = ("has", "it is") if self.without == 1 else ("have", "they are")
        told = [f"{self.without:,} {of} {have} no caption ({self.without / share:.0%}): {are} shown without"] if self.without else []
        unshown = weights is not None and any(not weights.get(kind, 0.0) > 0 for kind in self.kinds)
        return told + ([f"captions by kind: {kinds}; data.captions shows {', '.join(weights or ())}"] if unshown else [])


def captioned(indexes: Sequence[Index]) -> Captioned:
    """Count captions: over all clips where dataset.json holds the counts, else over up to 2,000 clips of each dataset, evenly spread."""
    clips, looked, without, kinds = 0, 0, 0, Counter[str]()
    for index in indexes:
        written = index.captioned
        clips += len(index)
        if written is not None:
            looked += written["clips"]
            without += written["without"]
            kinds.update(written["kinds"])
            continue
        for row in (rows := _spread(index, _COUNTED)):
            said = {caption.kind for caption in index.captions(row)}
            without += not said
            kinds.update(said)
        looked += len(rows)
    return Captioned(clips, looked, without, dict(kinds))


def identity(indexes: Sequence[Index], *parts: str) -> str:
    """A hash of the datasets' clips and captions, in order, and of the other fingerprints: everything that a run's data depends on."""
    lines = [*parts, *(f"{index.fingerprint}\t{index.captions_fingerprint}" for index in indexes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def selections_told(indexes: Sequence[Index]) -> list[str]:
    """For each dataset with a selection, a line on how many of its clips are kept and why others are left out."""
    return [f"{called(index.folder)}: {line}" for index in indexes for line in index.selected]


def selected(indexes: Sequence[Index]) -> dict[str, str]:
    """The identity of the selections that a run depends on, by its name among the hashes; empty if all clips are kept."""
    chosen = [None if index.selection is None or index.selection.kept.all() else index.selection.clips[:12] for index in indexes]
    return {"selection": " ".join(each or "all" for each in chosen)} if any(chosen) else {}


def require_kinds(indexes: Sequence[Index], weights: Mapping[str, float] | None) -> None:
    """Raise ValueError for wrong `data.captions`: no positive weight, a negative one, or a kind that a dataset does not have.

    A dataset without any caption lacks no kind, unless no dataset has captions.
    """
    if weights is None:
        return
    if min(weights.values(), default=0.0) < 0 or not sum(weights.values()) > 0:
        raise ValueError(f"data.captions={dict(weights)}: weights are 0 or more, and at least one of them is above 0")
    found = [captioned([index]) for index in indexes]
    for index, counts in zip(indexes, found, strict=True):
        lacking = [kind for kind, weight in weights.items() if weight > 0 and not counts.kinds.get(kind)]
        if lacking and (counts.kinds or not any(other.kinds for other in found)):
            advice = "" if counts.kinds else "; data.captions=null trains without"
            raise ValueError(
                f"data.captions names {', '.join(lacking)}, but none of the {counted(counts.looked, 'clip')} of {index.folder} has "
                f"such a caption; {counts.listed}{advice}"
            )


def texts_told(
    indexes: Sequence[Index], weights: Mapping[str, float] | None, *, encoder: TextEncoder, caches: Sequence[TextCache] | None, fill: int
) -> list[str]:
    """Lines about a run's captions: how many clips have none, and how many captions are longer than the network reads.

    caches: the stored states of the captions, which record how many were cut. fill: words that the network reads of a caption, 0 for all.
    """
    told, limits = captioned(indexes).lines(weights), with_fill(encoder.limits(), fill)
    recorded = [cache.cut for cache in caches or ()]
    if recorded and None not in recorded:
        told += [cut.line() for cut in recorded for cut in cut or ()]
        limits = tuple(limit for limit in limits if limit not in encoder.limits())
    said = (caption for index in indexes for row in _spread(index, _COUNTED) for caption in index.captions(row)) if limits else ()
    shown = dict.fromkeys(caption.text for caption in said if weights is None or weights.get(caption.kind, 0.0) > 0)
    return told + [cut.line() for cut in cuts(limits, shown)]


def caption_kind(index: Index, asked: str | None) -> str | None:
    """The kind of caption that serves as prompt: `asked`, else "dense" if any clip has it; None: the first caption of each clip.

    Raises ValueError for a kind that no clip has.
    """
    found = captioned([index])
    wanted = DENSE if asked is None else asked
    if asked is not None and asked not in found.kinds:
        raise ValueError(f"caption={asked}: no clip of {index.folder} has such a caption; {found.listed}")
    return wanted if wanted in found.kinds else None


def require_cached(index: Index, texts: TextCache, weights: Mapping[str, float] | None) -> None:
    """Raise ValueError if captions that a run shows were never encoded; checks 64 clips, evenly spread."""
    said = (said for row in _spread(index, _LOOKED_AT) for said in index.captions(row))
    shown = (said for said in said if weights is None or weights.get(said.kind, 0.0) > 0)
    lacking = next((said for said in shown if said.text not in texts), None)
    if lacking is not None:
        raise NotEncoded(
            f"captions of kind {lacking.kind} of {index.folder} are not encoded, such as {lacking.text[:60]!r}; choose the kinds that are"
            " with data.captions, or run sora encode again",
            index.folder,
        )


def _spread(index: Index, most: int) -> list[int]:
    return np.unique(np.linspace(0, len(index) - 1, min(most, len(index))).astype(int)).tolist()


def require_caption(index: Index, row: int, weights: Mapping[str, float] | None) -> None:
    """Raise BadClip for a clip whose captions are all of kinds without weight. A clip without any caption is shown without one."""
    if weights is None:
        return
    with of_the_clip():
        kinds = {said.kind for said in index.captions(row)}
    if kinds and not any(weights.get(kind, 0.0) > 0 for kind in kinds):
        raise BadClip(f"its captions are of kinds {', '.join(sorted(kinds))}, and data.captions={dict(weights)} shows none of these")


def all_told(told: AllCaptions, index: Index, row: int, weights: Mapping[str, float] | None) -> Float[Tensor, "_ 1"]:
    """All captions of a clip whose kinds have a weight above 0 (None: of any kind), and its facts."""
    with of_the_clip():
        found = index.row(row)
    kinds = [(said.kind, said.text) for said in index.captions(row) if weights is None or weights.get(said.kind, 0.0) > 0]
    return told.states(kinds, found.extra)
