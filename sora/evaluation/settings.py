"""The settings of `sora evaluate`, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.assembly.generation import Sampling
    from sora.metrics.extractors.features import VideoFeatures


@dataclass(frozen=True)
class Side:
    """Which clips are taken from one side: from n videos (None: all), with the other fields as in `ClipPolicy`."""

    n: int | None
    frames: int | None
    stride: int
    windows: int
    start: str
    short: str
    choose: str


@dataclass(frozen=True)
class Continuation:
    """How continuations are compared. context: number of first frames that the model was given; None if it is not set. shown: whether the
    videos contain these frames."""

    context: int | None
    shown: bool

    @property
    def left_out(self) -> int:
        """The number of context frames; `check_continuation` has refused a command without it."""
        assert self.context is not None
        return self.context


@dataclass(frozen=True)
class LossSettings:
    """The clips and noise that a held-out loss averages. clips: None for all. levels: number of noise levels. draws: of noise per level."""

    clips: int | None
    levels: int
    draws: int


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The keys of `sora evaluate`; conf/evaluate.yaml explains them.

    data: the folders that it names; None if none. extractor, sampling: make the feature extractor, and the settings of generation. They are
    called only where needed, because either may name files that do not exist.
    """

    checkpoint: str
    data: tuple[str, ...] | None
    split: str
    selection: str | None
    sets: tuple[str, ...] | None
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
