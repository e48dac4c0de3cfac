"""Scores videos that a run generates while it trains, by `evaluation.videos.metrics`: adherence, and distances to held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sora.data.loading.held_out import HeldOutClips
    from sora.generation.generator import Request
    from sora.metrics.extractors.features import VideoFeatures

METRICS = ("adherence", "frechet", "kvd", "motion")
APPEARANCE = ("frechet", "kvd")  # distances in the features of evaluation.videos.extractor
WANTED = ("frechet", "frechet_floor", "frechet_over_floor", "frechet_p", "kvd", "kvd_p")
PERMUTATIONS = 79  # of both sets together, for floors and p values
TOLD = 3  # names in a message on unreadable clips


def scorer(
    names: Sequence[str], appearance: Callable[[], VideoFeatures], clips: HeldOutClips, requests: Sequence[tuple[int, Request]]
) -> Callable[[Sequence[Tensor]], dict[str, float]] | None:
    """The function that scores the videos by the words of evaluation.videos.metrics; None if there are none. appearance: makes the
    configuration's extractor."""
    from sora.world.dataset import world_of

    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"evaluation.videos.metrics={list(names)} has {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    if "adherence" in names and any(world_of(index.described) is None for index in clips.indexes):
        raise ValueError("evaluation.videos.metrics has adherence, which is measured on captions of the built-in world; leave it out")
    if not names:
        return None
    extractors = extractors_of(names, appearance)
    if extractors and len(requests) < 2:
        raise ValueError(f"evaluation.videos.count={len(requests)}: frechet, kvd and motion take at least 2 videos")
    for prefix, extractor in extractors.items():
        name = extractor.name  # reads the weights: a missing file is reported before training
        least, lengths = extractor.minimum_frames, [request.frames for _, request in requests]
        if prefix and sum(length >= least for length in lengths) < 2:
            raise ValueError(
                f"evaluation.videos.metrics has motion, which is of clips of {least} frames or more, and fewer than two of the held-out "
                "clips have them; leave it out"
            )
        if not prefix and min(lengths) < least:
            asked = " and ".join(word for word in names if word in APPEARANCE)
            raise ValueError(
                f"evaluation.videos.extractor: {name} sees {least} frames or more, and held-out clips have {min(lengths)}; choose another, "
                f"or leave {asked} out of evaluation.videos.metrics"
                f"{', where motion has no use for it and may stay' if 'motion' in names else ''}"
            )
    return Scorer(names, clips, requests, extractors=extractors)


def extractors_of(names: Sequence[str], appearance: Callable[[], VideoFeatures]) -> dict[str, VideoFeatures]:
    """The extractors, by the prefix of their figures: the configuration's if a word reads it, and that of motion."""
    from sora.metrics.extractors.motion3d import Motion3D

    found = {"": appearance()} if set(APPEARANCE) & set(names) else {}
    return found | ({"motion_": Motion3D()} if "motion" in names else {})


def of_features(real: Tensor, fake: Tensor) -> dict[str, float]:
    """The distances between two sets of features that are logged during training."""
    from sora.metrics.distribution.comparison import compare_features

    figures = compare_features(real, fake, key="", ddof=1, seed=0, bootstrap=0, permutations=PERMUTATIONS, neighbours=5)
    named = {name.replace("/", "_").rstrip("_").replace("__", "_"): value for name, value in figures.items()}
    return {name: named[name] for name in WANTED if name in named}


class Scorer:
    """Computes figures of videos that were generated from captions of held-out clips. extractors: by the prefix of their figures; none if
    no word is a distance.

    It uses functions, not torchmetrics: it runs on one rank, and a metric would wait for all of them.
    """

    def __init__(
        self, names: Sequence[str], clips: HeldOutClips, requests: Sequence[tuple[int, Request]], *, extractors: Mapping[str, Any]
    ) -> None:
        self._names, self._clips, self._requests, self._extractors = names, clips, requests, extractors
        self._real: dict[str, tuple[Any, dict[int, Tensor]]] | None = None  # by the prefix of the extractor's figures
        self._readable = 0

    def __call__(self, videos: Sequence[Tensor]) -> dict[str, float]:
        found = self._adherence(videos) if "adherence" in self._names else {}
        return found | (self._distances(videos) if self._extractors else {})

    def _adherence(self, videos: Sequence[Tensor]) -> dict[str, float]:
        from sora.metrics.statistics import wilson
        from sora.world.judge.adherence import counted, judge, shares
        from sora.world.language import PALETTE, parse

        wanted = [request for _, request in self._requests]
        frames = [video.numpy() for video in videos]
        agreed = judge(frames, [item.fps for item in wanted], [parse(item.prompt) for item in wanted], palette=PALETTE)
        found = {f"adherence_{name}": value for name, value in shares(*counted(agreed)).items()}
        if "adherence_all" in found:
            found["adherence_all_low"], found["adherence_all_high"] = wilson(found["adherence_all"], int(found["adherence_n"]))
        return found

    def _distances(self, videos: Sequence[Tensor]) -> dict[str, float]:
        """The distances to the clips whose captions were the prompts, so that both sets have the same mixture of sizes and lengths.

        distance_clips: the number of these clips. motion_clips: the number of them that are long enough for the motion extractor. If an
        original cannot be read, the video of its caption is left out too.
        """
        import torch

        from sora.system.terminal import say

        if self._real is None:
            originals = self._originals()
            self._readable = len(originals)
            self._real = {}
            for prefix, extractor in self._extractors.items():
                long_enough = {number: frames for number, frames in originals.items() if len(frames) >= extractor.minimum_frames}
                self._real[prefix] = (extractor, {number: extractor(frames[None]) for number, frames in long_enough.items()})
                if prefix and len(long_enough) < 2 <= len(originals):
                    say(f"beware: motion has no distance, {len(long_enough)} of the held-out clips that can be read have frames enough")
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
        """The held-out clips by request number, as training sees them: the part that patches cover, or resized to the size and rate of
        encoding. Prints which cannot be read."""
        from sora.system.terminal import say

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
        """Clips that were resized for encoding; those that failed, with the reason from the quarantine of the held-out clips."""
        found: dict[int, Tensor] = {}
        for step in range(len(self._clips.listing)):
            for pack in self._clips.read(step):
                found |= dict(zip(pack.sample_ids, pack.frames, strict=True))
        samples = {number: request.sample for number, (_, request) in enumerate(self._requests)}
        return {number: found[sample] for number, sample in samples.items() if sample in found}, {}

    def _stored(self) -> tuple[dict[int, Tensor], dict[int, str]]:
        """The part of each stored clip that its patches cover, or the reason why there is none."""
        import torch

        from sora.data.loading.loader import read_clip
        from sora.video.files import CONFINED

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
