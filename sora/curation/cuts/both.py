"""Hard and gradual transitions by differences of frames, and by a network only where these show a slow change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sora.curation.cuts.differences import AdaptiveCuts
from sora.curation.cuts.evidence import Chunk, Evidence, chunks
from sora.curation.cuts.frames import Small, shrunk, steadied
from sora.curation.cuts.joining import joined, runs
from sora.curation.cuts.peaks import Peaks
from sora.curation.cuts.pyscenedetect import Following
from sora.curation.cuts.slow import SlowChange
from sora.curation.cuts.windows import ShotProbabilities
from sora.curation.cuts.wipes import WipeRule
from sora.curation.spans import Transition

SOFT = 2  # frames on both sides of a wipe in which its edge may still be seen, soft as it is
NEAR = 3  # frames between two finds of one transition
DENIED = 0.2  # probability below which the network says that a hard cut is none


@dataclass(frozen=True, kw_only=True)
class TwoStageCuts:
    """Hard cuts of `adaptive`, and dissolves, fades and wipes that are looked for where frames change slowly.

    Frames where the whole picture moves along a straight line to another one (`slow`) go to TransNetV2, with the frames around them, and
    its probabilities are read by `peaks`; most frames never reach it. Wipes are found without it (`wipes`). Flashes of a few frames are
    mended first, and blank frames beside a transition become a part of it. A video takes a few bytes of memory a frame.
    """

    adaptive: AdaptiveCuts
    slow: SlowChange
    peaks: Peaks
    wipes: WipeRule

    def identity(self) -> str:
        """The hash of the weights, the versions of PySceneDetect and OpenCV, and all settings. Reads the weight file."""
        parts = f"{self.adaptive.identity()}; slow {self.slow.identity()}; wipes {self.wipes.identity()}; peaks {self.peaks.identity()}"
        return f"both transnetv2 {self._probabilities.sha256}; {parts}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.adaptive.size(height, width)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        evidence = Evidence()
        for chunk in chunks(self._small(frames, evidence)):
            self._judge(chunk, evidence)
        return self._decided(evidence) if evidence.blank else []

    def _small(self, frames: Iterable[Any], evidence: Evidence) -> Iterator[Small]:
        """The frames made small and mended; hard cuts and what else is known of a frame go to the evidence on the way."""
        following = Following(self.adaptive.detector())

        def watched() -> Iterator[np.ndarray]:
            for frame in frames:
                evidence.cuts += following.add(frame)
                yield shrunk(frame)
            evidence.cuts += following.ended()

        for small in steadied(watched()):
            evidence.mended.append(small.mended)
            evidence.blank.append(small.blank)
            yield small

    def _judge(self, chunk: Chunk, evidence: Evidence) -> None:
        """Add what a chunk's frames show: wipes, where to look, and what the network sees there."""
        pixels = chunk.pixels.astype(np.float32)
        cuts = [cut - chunk.start for cut in evidence.sound_cuts() if chunk.start < cut < chunk.start + len(pixels)]
        for wipe in self.wipes.wipes(pixels):
            middle, half = chunk.start + wipe.middle, wipe.span // 2
            if chunk.first <= middle < chunk.end and all(abs(wipe.middle - cut) > half + NEAR for cut in cuts):
                evidence.wipes.append(Transition(max(0, middle - half - SOFT), min(middle + half + SOFT, chunk.start + len(pixels))))
        own = slice(chunk.first - chunk.start, chunk.end - chunk.start)
        looked = self.slow.marked(pixels, cuts)[own]
        found = np.zeros((len(looked), 2), np.float32)
        for first, end in runs(looked):
            found[first:end] = self._probabilities.inside(chunk.pixels, own.start + first, own.start + end)
        evidence.looked.append(looked)
        evidence.probabilities.append(found)

    def _decided(self, evidence: Evidence) -> list[Transition]:
        """The transitions by all the evidence. A hard cut keeps its exact frame unless a gradual transition holds it or the network, where
        it looked, denies it."""
        probabilities, looked = np.concatenate(evidence.probabilities), np.concatenate(evidence.looked)
        seen = self.peaks.transitions(probabilities)
        slow = [each for each in seen if each.end > each.first] + evidence.wipes
        found: list[Transition] = []
        for cut in evidence.sound_cuts():
            denied = looked[cut - 1] and probabilities[max(0, cut - 2) : cut + 1, 0].max() < DENIED
            if not denied and not any(each.first - NEAR <= cut <= each.end + NEAR for each in slow):
                found.append(Transition(cut, cut))
        found += [each for each in seen if each.end == each.first and all(abs(each.first - cut.first) > NEAR for cut in found)]
        return joined([*found, *slow], evidence.blank)

    @cached_property
    def _probabilities(self) -> ShotProbabilities:
        return ShotProbabilities()
