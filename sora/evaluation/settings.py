"""What `sora evaluate` is asked for, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.assembly.generation import Sampling
    from sora.metrics.extractors.features import VideoFeatures


@dataclass(frozen=True)
class Side:
    """Which clips are taken of one side: of so many videos, None for all, and the rest as `ClipPolicy` says."""

    n: int | None
    frames: int | None
    stride: int
    windows: int
    start: str
    short: str
    choose: str


@dataclass(frozen=True)
class Continuation:
    """How continuations are compared. context: first frames that the model was given, None where nobody says it. shown: they are in the
    videos, too."""

    context: int | None
    shown: bool

    @property
    def left_out(self) -> int:
        """Frames of context; `check_continuation` has refused a command that does not say how many."""
        assert self.context is not None
        return self.context


@dataclass(frozen=True)
class LossSettings:
    """What a held-out loss is the mean of. clips: None for all. levels: of noise. draws: of noise at each level."""

    clips: int | None
    levels: int
    draws: int


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The keys of `sora evaluate`, which conf/evaluate.yaml explains. Beside them:

    data: the places that it names; None where it names nothing. extractor: makes the network of features. sampling: makes what says how
    clips are generated. Both only where they are wanted, as either may name what is not there.
    """

    checkpoint: str
    data: tuple[str, ...] | None
    split: str
    metrics: tuple[str, ...] | None
    step: int | None
    ema: bool | float | str
    n: int | None
    caption: str | None
    uncaptioned: str
    negative: Any
    seed: int
    budget: int
    device: str
    real: Side
    generated: Side
    size: Any
    kernel: str
    crop: bool
    trajectories: int
    rates: str
    quantise: bool
    ddof: int
    bootstrap: int
    permutations: int
    neighbours: int
    statistics: str | None
    cache: str | None
    vbench: str | None
    continuation: Continuation
    loss: LossSettings
    training: int | None
    page: bool
    keep: int | None
    output: str | None
    extractor: Callable[[], VideoFeatures]
    sampling: Callable[[], Sampling]
