"""Warnings about what the distances of two sets of features cannot tell, in plain words."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float
from torch import Tensor

LEAST_CLIPS = 8  # of a set: smaller sets have too few splits and too rough a covariance for any conclusion
MOST_WAYS = 10_000  # the most splits whose number a message gives


def cautions(real: Float[Tensor, "n d"], fake: Float[Tensor, "m _"]) -> list[str]:
    """A line for each of: sets of fewer than 8 clips, a clip that is repeated within a set, clips that are in both sets. Clips are the same
    if all their features are equal."""
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
    """The warning for sets of fewer than 8 clips."""
    ways = comb(n + m, n) // (2 if n == m else 1)
    least = f"there are {ways} ways to split them, so p is never below {1 / ways:.2g}" if ways < MOST_WAYS else "p alone is to be relied on"
    return f"beware: {n} real and {m} scored clips: {least}; what is told is a guess that more clips would move"


def paired() -> str:
    """The warning for sets of the same clips before and after a change."""
    return (
        "beware: both sides are the same clips, before and after: a floor and p of independent sets stand too high for them; "
        "over_floor compares reconstructions with one another, and says not that they are as good as originals"
    )
