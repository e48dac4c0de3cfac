"""A trained captioner that is given frames: the door for whatever asks it for captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sora.captioner.attributes import Attributes
from sora.captioner.network import CaptionNetwork, SeenClips
from sora.captioner.words import Words
from sora.captioner.writing import Written, write_captions
from sora.patches.geometry import Geometry
from sora.patches.packing import pack, patch_times
from sora.patches.patchifier import Patchifier
from sora.tokens import Grid


class Eyes(Protocol):
    """A VAE, or `PixelBlocks`."""

    @property
    def stride(self) -> tuple[int, int, int]: ...
    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B C t h w"]: ...


class TimedFrames(NamedTuple):
    """A clip. frames: uint8, (T, H, W, 3). times: of each frame, in seconds, rising."""

    frames: UInt8[Tensor, "T H W 3"]
    times: Sequence[float]


@dataclass(frozen=True)
class SaidClip:
    """What the captioner says of a clip. captions: by kind. answers: by attribute, the likeliest value and its probability. error: why
    there is nothing, else empty."""

    captions: Mapping[str, Written] = field(default_factory=dict)
    answers: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainedCaptioner:
    """Writes captions of frames. eyes, patchifier: as it was trained with, on the device of the network.

    beam: candidates of a caption; 1 is the greedy choice. most: words of a caption. budget: tokens of clips that are seen at once, which
    changes results by rounding only.
    """

    network: CaptionNetwork
    words: Words
    attributes: Attributes
    eyes: Eyes
    patchifier: Patchifier
    beam: int = 1
    most: int = 128
    budget: int = 8192

    @torch.no_grad()
    def captions_of(self, clips: Sequence[TimedFrames], kinds: Sequence[str] | None = None) -> list[SaidClip]:
        """What each clip shows. kinds: of captions (None: all that it was trained on). A clip too small for a patch has an error instead.

        Raises:
            ValueError: a kind that it does not write.
        """
        chosen = self.words.kinds if kinds is None else tuple(kinds)
        for kind in chosen:
            self.words.start(kind)
        found: list[SaidClip | None] = [None] * len(clips)
        waiting: list[tuple[int, Tensor, Grid, Tensor]] = []
        for number, clip in enumerate(clips):
            if why := self._refusal(clip):
                found[number] = SaidClip(error=why)
                continue
            ready = (number, *self._patches(clip))
            if waiting and sum(grid.tokens for _, _, grid, _ in waiting) + ready[2].tokens > self.budget:
                self._say(waiting, chosen, found)
                waiting = []
            waiting.append(ready)
        if waiting:
            self._say(waiting, chosen, found)
        return [said for said in found if said is not None]

    def _refusal(self, clip: TimedFrames) -> str:
        frames, height, width = clip.frames.shape[:3]
        if len(clip.times) != frames:
            return f"a clip of {frames} frames has {len(clip.times)} times"
        if any(after <= before for before, after in zip(clip.times, clip.times[1:], strict=False)):
            return "the times of its frames do not rise"
        geometry = Geometry(self.eyes.stride, self.patchifier.size)
        return (
            "" if geometry.holds(frames, height, width) else f"a clip of {frames} frames of {width}x{height} pixels is smaller than a patch"
        )

    def _patches(self, clip: TimedFrames) -> tuple[Tensor, Grid, Tensor]:
        """The patches of the largest part of a clip that divides into patches, from its beginning and its middle; their grid and times."""
        frames, height, width = Geometry(self.eyes.stride, self.patchifier.size).largest(*clip.frames.shape[:3])
        top, left = (clip.frames.shape[1] - height) // 2, (clip.frames.shape[2] - width) // 2
        part = clip.frames[:frames, top : top + height, left : left + width].to(self.network.queries.device)
        latents = self.eyes.encode(part[None])[0].float()
        return self.patchifier.patchify(latents), self.patchifier.grid(*latents.shape[1:]), self._times(clip.times[:frames])

    def _times(self, times: Sequence[float]) -> Float[Tensor, "t"]:
        """Seconds of each patch in time since the first frame: the mean over its frames, as `frame_times` has it for even times."""
        since = torch.tensor(times, dtype=torch.float64) - times[0]
        groups = since[1:].unflatten(0, (-1, self.eyes.stride[0])).mean(1) if len(since) > 1 else since[1:]
        return patch_times(torch.cat((since[:1], groups)).float(), self.patchifier.size.t)

    def _say(self, waiting: Sequence[tuple[int, Tensor, Grid, Tensor]], kinds: Sequence[str], found: list[SaidClip | None]) -> None:
        numbers, patches, grids, times = zip(*waiting, strict=True)
        total = sum(grid.tokens for grid in grids)
        tokens = pack([each.cpu() for each in patches], grids, seconds=times, budget=total, max_clips=len(grids))
        seen = self.network.see(tokens.to(self.network.queries.device))
        written = {kind: write_captions(self.network, self.words, seen, kind, beam=self.beam, most=self.most) for kind in kinds}
        for place, number in enumerate(numbers):
            found[number] = SaidClip({kind: lines[place] for kind, lines in written.items()}, answers_of(seen, self.attributes, place))


def answers_of(seen: SeenClips, attributes: Attributes, clip: int) -> dict[str, tuple[str, float]]:
    """The likeliest value of each attribute of a clip, and its probability."""
    best = {name: logits[clip].float().softmax(-1).max(-1) for name, logits in seen.answers.items()}
    return {name: (attributes.values[name][int(value.indices)], float(value.values)) for name, value in best.items()}
