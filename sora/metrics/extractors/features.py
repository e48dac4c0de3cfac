"""The interface of an extractor: a name that identifies its weights, the facts for a protocol, and features of videos."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sora.metrics.extractors.pixels import Preparation


@runtime_checkable
class VideoFeatures(Protocol):
    """An extractor of features. name: for keys of scores, different for different weights. fingerprint: SHA-256 of the weights.

    logits: the features are class logits, from which an inception score follows. canonical: the weights define the published Fréchet video
    distance; only then may a score be called FVD. settings: whatever else features depend on.

    Called with uint8 or float [0, 1] videos, B T H W 3, of at least `minimum_frames`; the features of one video do not depend on the
    others, beyond rounding.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def minimum_frames(self) -> int: ...
    @property
    def logits(self) -> bool: ...
    @property
    def canonical(self) -> bool: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def preparation(self) -> Preparation: ...
    def __call__(self, videos: Tensor) -> Float[Tensor, "B D"]: ...


def describe(extractor: VideoFeatures) -> dict[str, Any]:
    """Everything about an extractor that a score depends on, for the protocol of a score and of stored features."""
    preparation = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(extractor.preparation).items()}
    return {
        "name": extractor.name,
        "sha256": extractor.fingerprint,
        "dimension": extractor.dimension,
        "minimum_frames": extractor.minimum_frames,
        "input": preparation,
        "settings": extractor.settings,
    }
