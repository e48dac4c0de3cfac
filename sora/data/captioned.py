"""Whether clips have captions that a run can show: told for a sample of them before it starts, of each when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sora.data.index import Index
from sora.storage import NotEncoded
from sora.text.cache import TextCache

DENSE = "dense"  # the kind that says all of what a clip shows
_LOOKED_AT = 64  # clips of each dataset: a kind that is spelt wrong is on none of them


def require_kinds(indexes: Sequence[Index], weights: Mapping[str, float] | None) -> None:
    """Raise ValueError where `data.captions` cannot be meant: no positive weight, a negative one, or a kind that a dataset does not have.

    Looks at 64 clips of each dataset, evenly spread; what it cannot see so, `require_caption` finds.
    """
    if weights is None:
        return
    if min(weights.values(), default=0.0) < 0 or not sum(weights.values()) > 0:
        raise ValueError(f"data.captions={dict(weights)}: weights are 0 or more, and at least one of them is above 0")
    for index in indexes:
        rows = _spread(index)
        kinds = Counter(kind for row in rows for kind in {said.kind for said in index.captions(row)})
        lacking = [kind for kind, weight in weights.items() if weight > 0 and not kinds[kind]]
        if kinds and lacking:
            found = ", ".join(sorted(kinds))
            raise ValueError(
                f"data.captions names {', '.join(lacking)}, but none of {len(rows)} clips of {index.folder} has such a caption;"
                f" their kinds are {found}"
            )


def caption_kind(index: Index, asked: str | None) -> str | None:
    """The kind of caption that prompts are: the one that is asked for, else the dense ones where there are any; None: each clip's first.

    Raises ValueError for a kind that none of 64 clips, evenly spread, has.
    """
    kinds = {said.kind for row in _spread(index) for said in index.captions(row)}
    wanted = DENSE if asked is None else asked
    if asked is not None and asked not in kinds:
        found = f"their kinds are {', '.join(sorted(kinds))}" if kinds else "they have no captions at all"
        raise ValueError(f"caption={asked}: no clip of {index.folder} has such a caption; {found}")
    return wanted if wanted in kinds else None


def require_cached(index: Index, texts: TextCache, weights: Mapping[str, float] | None) -> None:
    """Raise ValueError where captions that a run shows were never encoded; looks at 64 clips, evenly spread."""
    shown = (said for row in _spread(index) for said in index.captions(row) if weights is None or weights.get(said.kind, 0.0) > 0)
    lacking = next((said for said in shown if said.text not in texts), None)
    if lacking is not None:
        raise NotEncoded(
            f"captions of kind {lacking.kind} of {index.folder} are not encoded, such as {lacking.text[:60]!r}; choose the kinds that are"
            " with data.captions, or run sora encode again",
            index.folder,
        )


def _spread(index: Index) -> list[int]:
    return np.unique(np.linspace(0, len(index) - 1, min(_LOOKED_AT, len(index))).astype(int)).tolist()


def require_caption(index: Index, row: int, weights: Mapping[str, float] | None) -> None:
    """Raise ValueError for a clip whose captions are all of kinds without weight. One without any caption is shown without."""
    if weights is None:
        return
    kinds = {said.kind for said in index.captions(row)}
    if kinds and not any(weights.get(kind, 0.0) > 0 for kind in kinds):
        raise ValueError(f"its captions are of kinds {', '.join(sorted(kinds))}, and data.captions={dict(weights)} shows none of these")
