"""Clips as columns, and plans of them with plain settings."""

import numpy as np

from sora.data.plan.clips import LatentClips
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Packed
from sora.data.plan.plan import TokenPlan
from sora.tokens import Grid

RNG = np.random.default_rng(0)


def clips(shapes, *, datasets=1, patch=(1, 1, 1), fingerprint="f", key=None):
    """(t, h, w) of each clip, spread over some datasets."""
    return LatentClips(np.array_split(np.asarray(shapes), datasets), patch=Grid(*patch), fingerprint=fingerprint, key=key)


def lengths(tokens, **more):
    """Clips of so many tokens each, all of them in time."""
    return clips([(count, 1, 1) for count in tokens], **more)


def plan(of, **more):
    settings = {"filling": Packed(), "cost": Cost(linear=1.0, quadratic=1e-3), "budget": 1025, "max_clips": 32, "packs": 2}
    settings |= {"accumulate": 1, "window": 16, "frames": None, "area": None, "images": None, "drop_long": False, "curriculum": ()}
    return TokenPlan(of, **(settings | {"weights": None, "width": None, "seed": 0} | more))


MIXES = {
    "few shapes": RNG.choice([16, 64, 80, 96, 120], size=211),
    "long tails": np.minimum(1024, np.exp(RNG.normal(4, 1.2, size=307))).astype(int) + 1,
    "all alike": np.full(37, 100),
    "each fills a pack": np.full(5, 1024),
    "one clip": np.array([3]),
}
