"""Real clips and what can be done to them: seven kinds of damage, each in rungs of rising severity. uint8, B T H W 3."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

Videos = UInt8[Tensor, "B T H W 3"]
FRAMES = 16
STRIDES = (2, 3, 4, 5)
SPAN = (FRAMES - 1) * STRIDES[-1] + 1  # frames that a window needs for its largest stride
EVERY = 8  # frames between the starts of windows
RATE = 16  # frames a second that a codec is told


def windows(folder: Path, names: Sequence[str], *, side: int, most: int) -> tuple[Tensor, Tensor]:
    """Two sets of real windows (n, SPAN, side, side, 3), at most so many each, spread over the videos: neighbours in time by turns, the
    left and the right end of each frame. The same footage, so that what they score is near a floor."""
    found: list[tuple[int, Tensor]] = []
    for name in names:
        frames = sized(folder / name, side)
        ends = sorted({0, frames.shape[2] - side})
        for place, start in enumerate(range(0, len(frames) - SPAN + 1, EVERY)):
            found += [(place % 2, frames[start : start + SPAN, :side, left : left + side]) for left in ends]
    sets = [torch.stack([clip for turn, clip in found if turn == which]) for which in (0, 1)]
    n = min(most, *map(len, sets))
    one, two = (clips[np.linspace(0, len(clips) - 1, n).round().astype(int)] for clips in sets)
    return one, two


def sized(path: Path, side: int) -> Tensor:
    """The frames of a video, its shorter side brought to `side`, rounded."""
    parts = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].float()
            height, width = picture.shape[2:]
            scale = side / min(height, width)
            size = (max(side, round(height * scale)), max(side, round(width * scale)))
            parts.append(functional.interpolate(picture, size=size, mode="bilinear", antialias=True))
    return torch.cat(parts).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def whole(span: Tensor) -> Tensor:
    """The clips without damage."""
    return span[:, :FRAMES]


def noise(clips: Tensor, deviation: float) -> Tensor:
    """Of a Gaussian, in shares of the range."""
    draw = torch.Generator().manual_seed(5)
    return _bytes(whole(clips) + 255 * deviation * torch.randn(whole(clips).shape, generator=draw))


def blur(clips: Tensor, deviation: float) -> Tensor:
    """Gaussian, in pixels."""
    reach = int(3 * deviation) + 1
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * deviation**2))
    line = line / line.sum()
    count = len(clips)
    frames = functional.pad(whole(clips).permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None].float(), [reach] * 4, mode="replicate")
    frames = functional.conv2d(functional.conv2d(frames, line[None, None, :, None]), line[None, None, None])
    return _bytes(frames[:, 0].unflatten(0, (count, FRAMES, 3)).permute(0, 1, 3, 4, 2))


def frozen(clips: Tensor, block: int) -> Tensor:
    """Each frame stays for `block` frames; at FRAMES the clip stands still."""
    return whole(clips)[:, [place // block * block for place in range(FRAMES)]]


def shuffled(clips: Tensor, block: int) -> Tensor:
    """Within blocks of so many frames, each clip in an order of its own."""
    draw = np.random.Generator(np.random.PCG64(0))
    orders = [np.concatenate([start + draw.permutation(block) for start in range(0, FRAMES, block)]) for _ in clips]
    return torch.stack([clip[torch.from_numpy(order)] for clip, order in zip(whole(clips), orders, strict=True)])


def paler(clips: Tensor, share: float) -> Tensor:
    """So much of the colour taken out; at 1 the clip is grey."""
    frames = whole(clips).float()
    grey = frames.mean(dim=-1, keepdim=True)
    return _bytes(grey + (frames - grey) * (1 - share))


def coded(clips: Tensor, crf: int) -> Tensor:
    """H.264 at a constant rate factor, 4:2:0, one thread."""
    return torch.stack([_coded(clip.numpy(), crf) for clip in whole(clips)])


def faster(clips: Tensor, stride: int) -> Tensor:
    """Every so-manyth frame."""
    return clips[:, : (FRAMES - 1) * stride + 1 : stride]


def _coded(frames: np.ndarray, crf: int) -> Tensor:
    kept = io.BytesIO()
    with av.open(kept, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "fast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    kept.seek(0)
    with av.open(kept) as container:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))


def _bytes(frames: Tensor) -> Tensor:
    return frames.clamp(0, 255).round().to(torch.uint8)


# What is done, and its rungs from mild to bad.
LADDERS: dict[str, tuple[Callable[[Tensor, float], Tensor] | Callable[[Tensor, int], Tensor], tuple[float, ...] | tuple[int, ...]]] = {
    "noise": (noise, (0.02, 0.05, 0.1, 0.2)),
    "blur": (blur, (0.5, 1.0, 2.0, 4.0)),
    "shuffle": (shuffled, (2, 4, 8, 16)),
    "freeze": (frozen, (2, 4, 8, 16)),
    "codec": (coded, (23, 30, 37, 44, 51)),
    "colour": (paler, (0.25, 0.5, 0.75, 1.0)),
    "stride": (faster, STRIDES),
}
