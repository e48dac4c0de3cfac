"""Scores of the videos that a run makes while it trains, by `evaluation.videos.metrics`: adherence, and distances to held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sora.during import HeldOutClips
    from sora.generation.generator import Request

METRICS = ("adherence", "frechet", "kvd", "motion")
DISTANCES = {"frechet", "kvd", "motion"}
WANTED = ("frechet", "frechet_floor", "frechet_over_floor", "frechet_p", "kvd", "kvd_p")
PERMUTATIONS = 79  # of both sets together, for floors and p values
TOLD = 3  # clips that cannot be read, of those that a message names


def scorer(
    said: Any, clips: HeldOutClips, requests: Sequence[tuple[int, Request]]
) -> Callable[[Sequence[Tensor]], dict[str, float]] | None:
    """What measures the videos, by said.metrics; None for nothing."""
    from sora.configs.build import build
    from sora.evaluation.targets import world_of

    names = tuple(said.metrics)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"evaluation.videos.metrics={list(names)} has {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    if "adherence" in names and any(world_of(index) is None for index in clips.indexes):
        raise ValueError("evaluation.videos.metrics has adherence, which is measured on captions of the built-in world; leave it out")
    if not names:
        return None
    if not DISTANCES & set(names):
        return Scorer(names, clips, requests, extractor=None)
    extractor, shortest = build(said.extractor), min(request.frames for _, request in requests)
    name = extractor.name  # reads the weights: a missing file is told before training
    if len(requests) < 2:
        raise ValueError(f"evaluation.videos.count={len(requests)}: frechet, kvd and motion take at least 2 videos")
    if "motion" in names and sum(request.frames > 1 for _, request in requests) < 2:
        raise ValueError("evaluation.videos.metrics has motion, and fewer than two of the held-out clips are videos; leave it out")
    if shortest < extractor.minimum_frames:
        raise ValueError(
            f"evaluation.videos.extractor: {name} sees {extractor.minimum_frames} frames or more, and held-out clips have {shortest}; "
            "choose another, or leave frechet and kvd out of evaluation.videos.metrics"
        )
    return Scorer(names, clips, requests, extractor=extractor)


def of_features(real: Tensor, fake: Tensor) -> dict[str, float]:
    """The distances of two sets of features that are told while training."""
    from sora.metrics.comparison import compare_features

    figures = compare_features(real, fake, key="", ddof=1, seed=0, bootstrap=0, permutations=PERMUTATIONS, neighbours=5)
    named = {name.replace("/", "_").rstrip("_").replace("__", "_"): value for name, value in figures.items()}
    return {name: named[name] for name in WANTED if name in named}


class Scorer:
    """Figures of videos made from captions of held-out clips. extractor: of features; None where no distance is asked for.

    Of pure functions, not metrics: it is asked on one rank, and a metric waits for all of them.
    """

    def __init__(self, names: Sequence[str], clips: HeldOutClips, requests: Sequence[tuple[int, Request]], *, extractor: Any) -> None:
        self._names, self._clips, self._requests, self._extractor = names, clips, requests, extractor
        self._real: dict[str, tuple[Any, dict[int, Tensor]]] | None = None  # of each extractor, by what begins its figures' names
        self._readable = 0

    def __call__(self, videos: Sequence[Tensor]) -> dict[str, float]:
        found = self._adherence(videos) if "adherence" in self._names else {}
        return found | (self._distances(videos) if self._extractor is not None else {})

    def _adherence(self, videos: Sequence[Tensor]) -> dict[str, float]:
        from sora.data.world import PALETTE, parse
        from sora.evaluation.measures import wilson
        from sora.metrics.adherence import counted, judge, shares

        wanted = [request for _, request in self._requests]
        frames = [video.numpy() for video in videos]
        agreed = judge(frames, [item.fps for item in wanted], [parse(item.prompt) for item in wanted], palette=PALETTE)
        found = {f"adherence_{name}": value for name, value in shares(*counted(agreed)).items()}
        if "adherence_all" in found:
            found["adherence_all_low"], found["adherence_all_high"] = wilson(found["adherence_all"], int(found["adherence_n"]))
        return found

    def _distances(self, videos: Sequence[Tensor]) -> dict[str, float]:
        """To the very clips whose captions were the prompts, so that both sets are the same mixture of sizes and lengths.

        distance_clips: how many those are, motion_clips: how many of them are videos. Where an original
        cannot be read, what was made of its caption is left out, too.
        """
        import torch

        from sora.evaluation.motion import network_of

        if self._real is None:
            extractors = {"": self._extractor} if {"frechet", "kvd"} & set(self._names) else {}
            extractors |= {"motion_": network_of("motion")} if "motion" in self._names else {}
            originals = self._originals()
            self._readable = len(originals)
            self._real = {}
            for prefix, extractor in extractors.items():
                long_enough = {number: frames for number, frames in originals.items() if len(frames) >= extractor.minimum_frames}
                self._real[prefix] = (extractor, {number: extractor(frames[None]) for number, frames in long_enough.items()})
        found = {"distance_clips": float(self._readable)}
        for prefix, (extractor, features) in self._real.items():
            if len(features) < 2:
                continue
            fake = torch.cat([extractor(videos[number][None]) for number in features])
            figures = of_features(torch.cat(list(features.values())), fake)
            asked = figures if prefix else {name: value for name, value in figures.items() if name.split("_")[0] in self._names}
            found |= {f"{prefix}{name}": value for name, value in asked.items()}
            found |= {f"{prefix}clips": float(len(features))} if prefix else {}
        return found

    def _originals(self) -> dict[int, Tensor]:
        """The held-out clips by the numbers of the requests, as what trains sees them: what their patches cover, or what is brought to
        size and rate for encoding. Says which cannot be read."""
        from sora.terminal import say

        shown, reasons = self._stored() if self._clips.encode is None else self._prepared()
        lacking = [number for number in range(len(self._requests)) if number not in shown]
        if lacking:
            listing = self._clips.listing
            told = [f"{listing.clips.key(self._requests[number][0])}{reasons.get(number, '')}" for number in lacking[:TOLD]]
            more = f", and {len(lacking) - TOLD} more" if len(lacking) > TOLD else ""
            left = "" if len(shown) > 1 else "; of fewer than two there is no distance"
            say(f"beware: {len(lacking)} held-out clips of {len(self._requests)} have no part in distances: {', '.join(told)}{more}{left}")
        return shown

    def _prepared(self) -> tuple[dict[int, Tensor], dict[int, str]]:
        """Those that were brought to size and rate; why others were not is in the quarantine of the held-out clips."""
        found: dict[int, Tensor] = {}
        for step in range(len(self._clips.listing)):
            for pack in self._clips.read(step):
                found |= dict(zip(pack.sample_ids, pack.frames, strict=True))
        samples = {number: request.sample for number, (_, request) in enumerate(self._requests)}
        return {number: found[sample] for number, sample in samples.items() if sample in found}, {}

    def _stored(self) -> tuple[dict[int, Tensor], dict[int, str]]:
        """The part of each stored clip that its patches cover, or why there is none."""
        import torch

        from sora.data.loading import read_clip
        from sora.data.video import CONFINED

        found, reasons = {}, {}
        for number, (row, request) in enumerate(self._requests):
            dataset, place = self._clips.place(row)
            try:
                frames = read_clip(self._clips.indexes[dataset], place, reader=CONFINED)
            except ValueError as error:
                reasons[number] = f" ({error})"
                continue
            found[number] = torch.from_numpy(frames[: request.frames, : request.height, : request.width].copy())
        return found, reasons
