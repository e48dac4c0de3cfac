"""Distances of motion: each word of `metrics=` has its own features, which need no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation.words import NEEDS
from sora.metrics.scored import MOTION, Motion

if TYPE_CHECKING:
    from torch import Tensor

    from sora.evaluation.bench import Bench, RealSet
    from sora.evaluation.videos.clips import Clips
    from sora.metrics.extractors.features import VideoFeatures
    from sora.system.work_sharing import Share


def network_of(word: str) -> VideoFeatures:
    """The feature extractor of a word."""
    from sora.metrics.extractors.flow_histograms import FlowHistograms
    from sora.metrics.extractors.motion3d import Motion3D

    return {"motion": Motion3D, "fvmd_lite": FlowHistograms}[word]()


def words_of(words: Sequence[str]) -> list[str]:
    """The words that are distances of motion."""
    return [word for word in words if word in MOTION]


def measures_protocol(words: Sequence[str]) -> dict[str, Any]:
    """The protocol's entry: the features of each word."""
    from sora.metrics.extractors.features import describe

    return {word: {"extractor": describe(network_of(word))} for word in words_of(words)}


def held_in(file: Path, words: Sequence[str], *, said: bool, share: Share) -> tuple[str, ...]:
    """The words that a file of statistics can serve alone; it has motion features only if they were asked for when it was written. Raises
    ValueError for another word on the command line; others of the default words are dropped, with a message."""
    from sora.metrics.feature_sets import named, read_features

    held = read_features(file).more
    if not (lacking := [word for word in words_of(words) if named(network_of(word)) not in held]):
        return tuple(words)
    told = f"statistics={file} holds no features of {' and '.join(lacking)}"
    if said:
        raise ValueError(f"{told}; name the real videos, too (data=FOLDER), or let a new file be written with metrics=[{','.join(words)}]")
    share.say(f"{told}: left out")
    return tuple(word for word in words if word not in lacking)


def features_of(bench: Bench, real: Clips) -> dict[str, Tensor]:
    """The features of all motion words, for a file of statistics; none for clips that are too short for them."""
    from sora.metrics.feature_sets import named

    found = {}
    for word in words_of(bench.words):
        network = network_of(word)
        if all(moves(real, number, network) for number in range(len(real))):
            found[named(network)] = _features(bench, word, network, real, range(len(real)), is_real=True)
    return found


def compared(bench: Bench, real: RealSet, fake: Clips) -> tuple[dict[str, float], list[str]]:
    """The figures of the motion words, and cautions. Every process extracts features; the first computes the figures.

    Images and clips that are too short count on neither side, and their number is printed; the figures' own n is the number of clips that
    count.
    """
    figures: dict[str, float] = {}
    told: list[str] = []
    for word in words_of(bench.words):
        network = network_of(word)
        ours = moving(real.clips_taken, network) if real.clips_taken is not None else list(range(len(real.shapes)))
        theirs, sets = moving(fake, network), bench.extractor.setting.trajectories
        counts = {"real clips": (len(ours), len(real.shapes)), "clips that are scored": (len(theirs), len(fake))}
        of_sets = [sum(number % sets == place for number in theirs) for place in range(sets)]
        if min(len(ours), *of_sets) < 2:
            having = " and ".join(f"{some} of {every} {side}" for side, (some, every) in counts.items())
            of_each = f" in each of {sets} sets" if sets > 1 else ""
            told.append(
                f"{word} is left out: a distance needs at least 2 clips that move on both sides{of_each}, and {having} have "
                f"{network.minimum_frames} frames or more"
            )
            continue
        told += [
            f"{word} is of {some} of {every} {side}: the others have fewer than {network.minimum_frames} frames"
            for side, (some, every) in counts.items()
            if some < every
        ]
        figures |= _distance(bench, word, network, real, fake, ours, theirs)
        told += _cautions(bench, real, fake, ours, theirs)
    if told and not figures and bench.share.first and not bench.extracts and not any(word in NEEDS for word in bench.words):
        raise ValueError(f"metrics=[{','.join(bench.words)}]: {'; '.join(told)}; add another: metrics=[frechet]")
    return figures, told


def _cautions(bench: Bench, real: RealSet, fake: Clips, ours: Sequence[int], theirs: Sequence[int]) -> list[str]:
    """Cautions on few clips, on copies, and on clips that are on both sides; if a word reads the chosen extractor's features, those report
    copies. Clips are compared by bytes and frames, because different still clips have the same motion features."""
    import torch

    from sora.metrics.distribution.cautions import LEAST_CLIPS, cautions, few

    theirs = [number for number in theirs if number % bench.extractor.setting.trajectories == 0]
    if bench.extracts:
        return [few(len(ours), len(theirs))] if min(len(ours), len(theirs)) < LEAST_CLIPS else []
    clips = real.clips_taken  # None for a file of statistics, whose copies are unknown
    keys = [[str(number) if clips is None else clips.key(number) for number in ours], [fake.key(number) for number in theirs]]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys[0] + keys[1]))}
    one, two = (torch.tensor([[numbers[key]] for key in side], dtype=torch.float64) for side in keys)
    return cautions(one, two)


def moves(clips: Clips, number: int, network: VideoFeatures) -> bool:
    """Whether a clip has enough frames for the features."""
    return clips.frames(number) >= network.minimum_frames


def moving(clips: Clips, network: VideoFeatures) -> list[int]:
    """The numbers of the clips with enough frames."""
    return [number for number in range(len(clips)) if moves(clips, number, network)]


def _features(bench: Bench, word: str, network: VideoFeatures, clips: Clips, kept: Sequence[int], *, is_real: bool) -> Tensor:
    from sora.evaluation.bench import bar

    part = replace(clips, taken=tuple(clips.taken[number] for number in kept))
    with bar(bench.share, f"{word} of {'the real clips' if is_real else 'what is scored'}") as progress:
        return replace(bench.extractor, network=network).features(part, real=is_real, progress=progress)


def _distance(
    bench: Bench, word: str, network: VideoFeatures, real: RealSet, fake: Clips, ours: Sequence[int], theirs: Sequence[int]
) -> dict[str, float]:
    """The distance of one word, over the clips with enough frames on each side; the mean over sets of trajectories."""
    from sora.evaluation.measures.extraction import averaged, distances, shapes_of
    from sora.evaluation.sides import several
    from sora.metrics.feature_sets import named as held

    setting = bench.extractor.setting
    one = real.moving.get(held(network))
    if one is None:
        assert real.clips_taken is not None
        one = _features(bench, word, network, real.clips_taken, ours, is_real=True)
    two = _features(bench, word, network, fake, theirs, is_real=False)
    if not bench.share.first:
        return {}
    shapes = [real.shapes[number] for number in ours], shapes_of(fake, setting)
    videos, found = several(real, fake), []
    if videos is not None:
        videos = ([videos[0][number] for number in ours], [videos[1][number] for number in theirs])
    for place in range(setting.trajectories):
        mine = [at for at, number in enumerate(theirs) if number % setting.trajectories == place]
        kinds = [shapes[1][theirs[at]] for at in mine]
        found.append(distances(one, shapes[0], two[mine], kinds, network=network, setting=setting, videos=videos)[0])
    return named(averaged(found), MOTION[word])


def named(found: Mapping[str, float], motion: Motion) -> dict[str, float]:
    """The figures of a distance that are asked for, under long names with the extractor and under short ones."""
    figures: dict[str, float] = {}
    for name, value in found.items():
        for start in (*motion.named, "n_real", "n_fake"):
            if name == start or name.startswith((f"{start}/", f"{start}_")):
                short = motion.called(start) + name[len(start) :]
                figures[name if "/" in name else short] = value
    return figures
