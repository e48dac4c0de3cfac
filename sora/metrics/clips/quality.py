"""Quality of videos without references, each video by itself; higher is better but for `dynamic_degree` and `warping_error`.

`temporal_flickering` is VBench's formula exactly; `consistency` is its subject and background formula over any encoder (VBench uses DINO
and CLIP). Scores that VBench measures with trained motion networks (RAFT, AMT) have `lite` in their names here: the same formula over the
optical flow of `flow` or over linear interpolation. Formulas: Huang et al. 2024, supplement.

Beware: the scores in FLATTERED, and consistency, improve when a video is blurred, compressed or frozen. Those of `picture` expose it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from sora.metrics.clips.flow import grey, optical_flow, visible, warp
from sora.metrics.clips.picture import PICTURE
from sora.metrics.extractors.frames import FrameFeatures
from sora.metrics.metric import VideoMetric
from sora.system.terminal import counted

MOVING_FPS = 8  # frames a second at which the dynamic degree is measured
VERSION = 2  # counts up when a score changes, so that older scores are not compared
IN_TIME = ("temporal_flickering", "motion_smoothness_lite", "dynamic_degree_lite", "warping_error_lite")
FLATTERED = ("temporal_flickering", "motion_smoothness_lite", "warping_error_lite")  # like consistency, better for a worse picture


def temporal_flickering(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """1 - the mean absolute difference of neighbouring frames, in [0, 1]: 1 for a still. Motion counts as flicker: for static scenes."""
    _check(videos, least=2)
    return torch.stack([1 - video.float().diff(dim=0).abs().mean() / 255 for video in videos]).double()


def consistency(states: Float[Tensor, "B T D"]) -> Float[Tensor, "B"]:
    """Mean over frames after the first of (max(0, cos to the frame before) + max(0, cos to the first)) / 2, in [0, 1].

    states: of an encoder, frame by frame. VBench's subject consistency with DINO's, its background consistency with CLIP's. VBench's own
    code weights by frames on one GPU and by videos on several; these values are per video, so a mean over videos is well defined.
    """
    if states.ndim != 3 or states.shape[1] < 2:
        raise ValueError(f"states of shape {tuple(states.shape)}; consistency needs (videos, frames, dimensions) of at least 2 frames")
    unit = functional.normalize(states.double(), dim=2)
    before = (unit[:, 1:] * unit[:, :-1]).sum(dim=2).clamp_min(0)
    first = (unit[:, 1:] * unit[:, :1]).sum(dim=2).clamp_min(0)
    return ((before + first) / 2).mean(dim=1)


def text_similarity(states: Float[Tensor, "B T D"], captions: Float[Tensor, "_ _"]) -> Float[Tensor, "B"]:
    """Mean over frames of the cosine between a frame's embedding and its caption's, in [-1, 1], both of one image-text model (CLIPSIM)."""
    if states.ndim != 3 or captions.shape != (states.shape[0], states.shape[2]):
        raise ValueError(
            f"frames' embeddings of shape {tuple(states.shape)} and captions' of {tuple(captions.shape)}; "
            "give (videos, frames, dimensions) and (videos, dimensions) of one model"
        )
    return functional.cosine_similarity(states.double(), captions.double()[:, None], dim=2).mean(dim=1)


def vbench_name(prompt: str, number: int) -> str:
    """The file name from which VBench reads a video's prompt and its number among the prompt's videos (from 0)."""
    name = f"{prompt}-{number}.mp4"
    if not prompt or number < 0 or "/" in prompt or "\0" in prompt or len(name.encode()) > 255:
        raise ValueError(f"prompt {prompt[:60]!r} of {len(prompt)} letters cannot be part of a file name, which is how VBench knows it")
    return name


def dynamic_degree_lite(videos: UInt8[Tensor, "B T H W 3"], *, fps: float) -> Float[Tensor, "B"]:
    """1 for videos that move, 0 for others.

    At 8 frames a second, a pair of frames moves if the fastest 5 % of the pixels that are seen in both do so by more than 6 · min(H, W) /
    256 on average; a video moves if at least round(4 · frames / 16) of its pairs do. VBench counts all pixels; this flow is wrong at
    borders where content leaves the frame, which would make a slow pan fast.
    """
    _check(videos, least=2)
    if fps <= 0:
        raise ValueError(f"fps={fps}: a video's frames a second are above 0")
    step = max(1, round(fps / MOVING_FPS))
    kept = videos[:, ::step]
    if kept.shape[1] < 2:
        kept = videos[:, [0, -1]]
    found = []
    for video in kept:
        frames = grey(video)
        flow = optical_flow(frames[:-1], frames[1:])
        seen = visible(flow, optical_flow(frames[1:], frames[:-1])).flatten(1)
        speed = (flow.norm(dim=1).flatten(1) * seen).sort(dim=1, descending=True).values
        taken = torch.arange(speed.shape[1], device=speed.device) < (0.05 * seen.sum(dim=1, keepdim=True)).floor().clamp_min(1)
        fastest = (speed * taken).sum(dim=1) / taken.sum(dim=1)
        moving = int((fastest > 6 * min(video.shape[1:3]) / 256).sum())
        found.append(float(moving >= max(1, round(4 * len(video) / 16))))
    return torch.tensor(found, dtype=torch.float64)


def motion_smoothness_lite(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """1 - the mean absolute error of every second frame as the mean of its neighbours, in [0, 1]; needs three frames."""
    _check(videos, least=3)
    found = []
    for video in videos:
        frames = video.float()
        last = (len(frames) - 1) // 2 * 2
        guessed = (frames[0:last:2] + frames[2 : last + 1 : 2]) / 2
        found.append(1 - (guessed - frames[1:last:2]).abs().mean() / 255)
    return torch.stack(found).double()


def warping_error(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """Mean squared difference, of [0, 1] values, between each frame and the next one warped back to it, over pixels seen in both.

    Lai et al. 2018, eq. 8, with the optical flow of `flow`. A pair of frames without such pixels counts 0.
    """
    _check(videos, least=2)
    found = []
    for video in videos:
        frames = grey(video)
        flow, back = optical_flow(frames[:-1], frames[1:]), optical_flow(frames[1:], frames[:-1])
        mask = visible(flow, back)
        colours = video.permute(0, 3, 1, 2).float() / 255
        error = (warp(colours[1:], flow) - colours[:-1]).square().mean(dim=1, keepdim=True) * mask
        found.append((error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1)).mean())
    return torch.stack(found).double()


class VideoQuality(VideoMetric):
    """Means of the scores over videos of any sizes and lengths. update(videos, fps=...) with uint8 B T H W 3.

    encoders: for consistency, by a word for the score, such as {"subject": DINO, "background": CLIP}; scores are named
    `subject_consistency/ENCODER`. compute() omits scores for which no video was long enough; `n` is the number of videos.
    """

    totals: Tensor
    counts: Tensor
    exact = ("totals", "counts")

    def __init__(self, *, encoders: dict[str, FrameFeatures], **settings: Any) -> None:
        super().__init__(**settings)
        self._held = (encoders,)  # in a tuple, so that no state dict has their weights
        self.names = (*IN_TIME, *PICTURE, *(f"{word}_consistency" for word in encoders))
        for name in ("totals", "counts"):
            self.add_state(name, default=torch.zeros(len(self.names) + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, videos: UInt8[Tensor, "B T H W 3"], *, fps: float) -> None:
        _check(videos, least=1)
        frames = videos.shape[1]
        found = {name: measured(videos) for name, measured in PICTURE.items()}
        if frames >= 2:
            found |= {"temporal_flickering": temporal_flickering(videos), "warping_error_lite": warping_error(videos)}
            found["dynamic_degree_lite"] = dynamic_degree_lite(videos, fps=fps)
            found |= {f"{word}_consistency": consistency(encoder.encode_frames(videos)) for word, encoder in self._held[0].items()}
        if frames >= 3:
            found["motion_smoothness_lite"] = motion_smoothness_lite(videos)
        for name, values in found.items():
            place = self.names.index(name)
            self.totals[place] += values.sum().to(self.totals.device)
            self.counts[place] += len(values)
        self.counts[-1] += len(videos)

    def compute(self) -> dict[str, float]:
        if self.counts[-1] == 0:
            raise ValueError("no video was given to the quality metric")
        keys = [*IN_TIME, *PICTURE, *(f"{word}_consistency/{encoder.name}" for word, encoder in self._held[0].items())]
        means = {key: float(total / count) for key, total, count in zip(keys, self.totals, self.counts, strict=False) if count > 0}
        return {**means, "n": float(self.counts[-1])}


def _check(videos: Tensor, *, least: int) -> None:
    if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or not len(videos):
        raise ValueError(f"videos are {videos.dtype} of shape {tuple(videos.shape)}; give uint8 (batch, frames, height, width, 3)")
    if videos.shape[1] < least:
        raise ValueError(f"videos of {counted(videos.shape[1], 'frame')}; this score needs at least {least}")
