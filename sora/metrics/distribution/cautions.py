"""What figures of two sets of features can and cannot tell: what to beware of, in plain words."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float
from torch import Tensor

LEAST_CLIPS = 8  # of a set: fewer have so few splits and so rough a covariance that a figure tells hardly anything
MOST_WAYS = 10_000  # splits that are counted out in a message


def cautions(real: Float[Tensor, "n d"], fake: Float[Tensor, "m _"]) -> list[str]:
    """A line for each of: sets of fewer than 8 clips, one clip several times in a set, the same clips on both sides. Clips are the same
    where all their features are."""
    rows = [features.detach().cpu().numpy() for features in (real, fake)]
    (ours, theirs), told = (np.unique(part, axis=0) for part in rows), []
    if min(len(real), len(fake)) < LEAST_CLIPS:
        told.append(few(len(real), len(fake)))
    for part, different, name in ((real, ours, "the real clips"), (fake, theirs, "what is scored")):
        if len(different) < len(part):
            found = "one clip" if len(different) == 1 else f"{len(different)} different clips"
            told.append(
                f"beware: {name} {'is' if len(different) == 1 else 'are'} {found} among {len(part)}: floor, p and interval take copies for "
                "independent clips and are too small; take each clip once"
            )
    shared = len(ours) + len(theirs) - len(np.unique(np.concatenate([ours, theirs]), axis=0))
    if shared:
        told.append(
            f"beware: {shared} of the {len(theirs)} different clips that are scored are real ones: the distance is too small, p too large, "
            "and neither says anything of clips that a model would make"
        )
    return told


def few(n: int, m: int) -> str:
    """Of sets of fewer than 8 clips."""
    ways = comb(n + m, n) // (2 if n == m else 1)
    least = f"there are {ways} ways to split them, so p is never below {1 / ways:.2g}" if ways < MOST_WAYS else "p alone is to be relied on"
    return f"beware: {n} real and {m} scored clips: {least}; what is told is a guess that more clips would move"


def paired() -> str:
    """Of sets that are the same clips before and after."""
    return (
        "beware: both sides are the same clips, before and after: a floor and p of independent sets stand too high for them; "
        "over_floor compares reconstructions with one another, and says not that they are as good as originals"
    )
