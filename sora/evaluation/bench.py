"""What every evaluation works with: the bench of one command, and the real side that clips are compared with."""

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

MOST_NAMED = 5  # clips that a message names


@dataclass(frozen=True)
class RealSet:
    """The real side's features (n, d), the shapes of their clips, and what a protocol says of it. Features have no columns where no word
    asks for the extractor's."""

    features: Tensor
    shapes: Shapes
    dataset: Mapping[str, Any]
    clips: Mapping[str, Any]
    clips_taken: Clips | None = None  # themselves; None where a file stands for them
    moving: Mapping[str, Tensor] = field(default_factory=dict)  # their features of motion, where a file has them


@dataclass(frozen=True)
class Bench:
    """What every evaluation works with."""

    extractor: Extractor
    words: Sequence[str]
    output: Path
    statistics: Path | None

    @property
    def share(self) -> Share:
        return self.extractor.share

    @property
    def compares(self) -> bool:
        """Whether two sets are compared."""
        return self.distances or CONTINUATION in self.words

    @property
    def distances(self) -> bool:
        """Whether by a distance of their distributions, which takes clips of one kind."""
        return self.extracts or any(word in MOTION for word in self.words)

    @property
    def reads_extractor(self) -> bool:
        """Whether any figure depends on the extractor that the command chose."""
        return any(reads_extractor(word, self.extractor.network) for word in self.words)

    @property
    def extracts(self) -> bool:
        """Whether by features of the extractor that the command chose, or by those of motion alone."""
        return any(word in DISTANCES for word in self.words)


def named(names: Sequence[str]) -> str:
    """How many clips, and which, of many the first."""
    told = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    return f"{counted(len(names), 'clip')} ({told})"


def bar(share: Share, what: str, unit: str = "clip") -> Any:
    """A progress bar on the first process, silence on the others."""
    return progress_bar(what, unit) if share.first else nullcontext(lambda done, total: None)
