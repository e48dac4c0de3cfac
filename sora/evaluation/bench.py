"""What all evaluations share: the settings of one command (`Bench`), and the real clips' features (`RealSet`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation.measures.clips import reads_extractor
from sora.evaluation.words import CONTINUATION, DISTANCES
from sora.metrics.scored import MOTION
from sora.system.terminal import counted, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from sora.evaluation.measures.extraction import Extractor, Shapes
    from sora.evaluation.videos.clips import Clips
    from sora.system.work_sharing import Share

MOST_NAMED = 5  # names of clips in a message


@dataclass(frozen=True)
class RealSet:
    """The real clips' features (n, d), the shapes of the clips, and their description in the protocol. d is 0 if no word of `metrics=`
    reads the extractor's features."""

    features: Tensor
    shapes: Shapes
    dataset: Mapping[str, Any]
    clips: Mapping[str, Any]
    clips_taken: Clips | None = None  # the clips themselves; None if a file of statistics replaces them
    moving: Mapping[str, Tensor] = field(default_factory=dict)  # their motion features, if a file has them


@dataclass(frozen=True)
class Bench:
    """The extractor, the words of `metrics=` and the paths of one evaluation."""

    extractor: Extractor
    words: Sequence[str]
    output: Path
    statistics: Path | None

    @property
    def share(self) -> Share:
        return self.extractor.share

    @property
    def compares(self) -> bool:
        """Whether any word compares two sets of clips."""
        return self.distances or CONTINUATION in self.words

    @property
    def distances(self) -> bool:
        """Whether any word is a distance between distributions, which needs clips of one kind."""
        return self.extracts or any(word in MOTION for word in self.words)

    @property
    def reads_extractor(self) -> bool:
        """Whether any metric reads the extractor that the command chose."""
        return any(reads_extractor(word, self.extractor.network) for word in self.words)

    @property
    def extracts(self) -> bool:
        """Whether any distance reads the features of the extractor that the command chose, and not only motion features."""
        return any(word in DISTANCES for word in self.words)


def named(names: Sequence[str]) -> str:
    """The number of clips and their names; of many, the first names."""
    told = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    return f"{counted(len(names), 'clip')} ({told})"


def bar(share: Share, what: str, unit: str = "clip") -> Any:
    """A progress bar on the first process, nothing on the others."""
    return progress_bar(what, unit) if share.first else nullcontext(lambda done, total: None)
