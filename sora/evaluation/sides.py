"""What a protocol records of the clips on each side, and which clips are of the same video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.evaluation.bench import Bench, RealSet
    from sora.evaluation.videos.clips import ClipPolicy, Clips

FEW = 8  # clips per feature: with fewer, a Fréchet distance depends more on the number of clips than on the clips


def about_real(real: Clips) -> dict[str, Any]:
    """What a protocol records of real clips: how they were taken, and a hash of which they are."""
    return {**real.about(), "taken": real.taken_sha256()}


def about_scored(clips: Clips, *, sets: int) -> dict[str, Any]:
    """What a protocol records of scored clips: how they were taken, but not which they are, because they are the subject. If file names
    decide which are taken, or the set of each, a hash of the names is included."""
    names = clips.by_names(sets=sets)
    return clips.about() | ({} if names is None else {"names": names})


def several(real: RealSet, fake: Clips) -> tuple[list[str], list[str]] | None:
    """The video of every clip on both sides, if a video has several windows; else None, because clips are then independent."""
    if real.clips.get("windows", 1) == 1 and fake.policy.windows == 1:
        return None
    ours = real.clips_taken
    return (
        [str(number) if ours is None else ours.video(number) for number in range(len(real.shapes))],
        [fake.video(number) for number in range(len(fake))],
    )


def check_windows(policy: ClipPolicy, *, sets: int, statistics: Any, named: str) -> None:
    """Raise ValueError for several windows of a video if each clip must be of a different video."""
    if policy.windows > 1 and sets > 1:
        raise ValueError(f"{named}.windows={policy.windows}: trajectories={sets} are of clips of one video each; set one of the two to 1")
    if policy.windows > 1 and statistics is not None:
        raise ValueError(f"{named}.windows={policy.windows}: statistics= holds one clip of each video; leave it out, or set windows to 1")


def of_rates(real: Mapping[str, Any], fake: Mapping[str, Any]) -> list[str]:
    """A caution if the clips of both sides, with their strides, have different frame rates; none for single frames. real, fake: the sides
    as a protocol records them."""
    if all(shape.startswith("1x") for side in (real, fake) for shape in side["shapes"]):
        return []
    told = [sorted(set(side["rates"])) for side in (real, fake)]
    if told[0] == told[1]:
        return []
    rates = [", ".join(f"{rate:g}" for rate in side) for side in told]
    told_apart = (
        f"beware: real clips show {rates[0]} frames a second, what is scored {rates[1]}: frames are taken by number, so the distance"
    )
    return [f"{told_apart} also tells of rates, and a small p need not mean other videos; set the strides, or bring both to one rate"]


def once(lines: Sequence[str]) -> list[str]:
    """The lines without repetitions."""
    return list(dict.fromkeys(lines))


def too_few(bench: Bench, real: int, fake: int) -> list[str]:
    """A caution if there are few clips for a Fréchet distance of so many features; none without a Fréchet distance."""
    dimension, fewest = bench.extractor.network.dimension, min(real, fake // bench.extractor.setting.trajectories)
    if not {"frechet", "fvd"} & set(bench.words) or fewest >= dimension / FEW:
        return []
    few = f"beware: a Fréchet distance over {counted(fewest, 'clip')} of {dimension} features is mostly its floor and tells only large"
    wanted = counted(-(-dimension // FEW), "clip")
    return [f"{few} differences; take {wanted} or more on both sides, or go by kvd, which few clips do not bias"]
