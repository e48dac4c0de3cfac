"""Clips whose every pixel says where and when it is, and datasets of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from sora.data.index.index import Caption, ClipFacts, DatasetWriter
from sora.data.loading.loader import FrameBatch
from sora.video.files import encode


def joined(packs: Sequence[FrameBatch]) -> FrameBatch:
    """The crops of all packs of a step in one batch."""
    parts = {name: tuple(part for pack in packs for part in getattr(pack, name)) for name in ("sample_ids", "epochs", "keys")}
    return FrameBatch(torch.cat([pack.frames for pack in packs]), torch.cat([pack.fps for pack in packs]), **parts)


def telling(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 T H W 3 noise: no two frames, rows or columns alike."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def counting(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame t has t / 16 as the grey of its left half and t % 16 of its right: survives lossy codecs, tells its number."""
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        picture[:, : width // 2] = 8 + 15 * (number // 16)
        picture[:, width // 2 :] = 8 + 15 * (number % 16)
    return pictures


def numbers(frames: np.ndarray) -> list[int]:
    """The frame numbers of `counting` frames."""
    width = frames.shape[2]
    left, right = frames[:, :, : width // 4].mean((1, 2, 3)), frames[:, :, -width // 4 :].mean((1, 2, 3))
    return [16 * round((high - 8) / 15) + round((low - 8) / 15) for high, low in zip(left, right, strict=True)]


def muxed(
    frames: np.ndarray, *, codec="libx264", container="mp4", times=None, base=Fraction(1, 1000), rotation=0, options=None, aspect=None
) -> bytes:
    """A file as others would write it. times: of each frame in seconds (default: 25 a second)."""
    # beware: below that width libx265 writes past its memory, and the process dies at some later time and place
    if codec == "libx265" and frames.shape[2] < 64:
        raise ValueError(f"libx265 needs pictures 64 wide, got {frames.shape[2]}")
    times = [number / 25 for number in range(len(frames))] if times is None else times
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream(codec, rate=25, options=options or {})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.time_base = base
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return file.getvalue()


def sound(samples: int) -> bytes:
    """An mp4 of sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def tar(members, *, kind=tarfile.USTAR_FORMAT) -> bytes:
    """A tar of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as out:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else 0
            out.addfile(info, io.BytesIO(content))
    return file.getvalue()


def dataset(folder: Path, shapes, *, fps=8.0, max_bytes=1 << 30, heldout=(), captions=True, prefix="clip") -> dict[str, np.ndarray]:
    """A dataset of lossless `telling` clips of (T, H, W) shapes; returns the frames by key."""
    clips = {}
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=max_bytes) as writer:
        for number, (frames, height, width) in enumerate(shapes):
            key = f"{prefix}-{number:03d}"
            clips[key] = telling(frames, height, width, seed=number)
            said = (Caption("short", f"clip {number}", "test"),) if captions else ()
            split = "heldout" if number in heldout else "train"
            facts = ClipFacts(key=key, frames=frames, fps=fps, height=height, width=width, captions=said, split=split)
            writer.write(facts, encode(clips[key], fps, lossless=True))
        writer.finish({"made": "by a test"})
    return clips


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
