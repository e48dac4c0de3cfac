"""metrics=[remembered]: whether a run reproduces its training data, by the nearest training clips of its videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.assembly.load import LoadedDiffusion
    from sora.evaluation.bench import Bench, RealSet
    from sora.evaluation.settings import EvaluationSettings
    from sora.evaluation.videos.clips import Clips
    from sora.patches.geometry import Geometry

PAIRS = 12  # pairs that are shown


def check_training(loaded: LoadedDiffusion, settings: EvaluationSettings) -> None:
    """Raise ValueError if the real clips are those that the run trained on."""
    split = loaded.config["data"]["split"]
    if split == settings.split:
        raise ValueError(
            f"metrics=[remembered]: split={split} is what the run trained on; name held-out clips, which are compared with those"
        )


def remembered(
    bench: Bench, loaded: LoadedDiffusion, clips: Clips, real: RealSet, geometry: Geometry, settings: EvaluationSettings
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """The share of generated clips that are nearer to a training clip than other real clips are, and the nearest pairs, whose training
    clips are written for the report. Every process extracts features; the first computes the figures."""
    from sora.data.index.index import Index
    from sora.evaluation.bench import bar
    from sora.evaluation.files import policy_of, real_folder
    from sora.evaluation.videos.clips import fitted, only, size_of, take, written
    from sora.evaluation.videos.sets import DatasetVideos
    from sora.metrics.distribution.neighbours import neighbours

    split = loaded.config["data"]["split"]
    videos = DatasetVideos(Index.open(real_folder(settings), split), caption=settings.caption)
    policy, sized = policy_of(settings, "real"), settings.size is not None
    wanted = [(clips.frames(n), *(() if sized else (clips.shape(n).height, clips.shape(n).width))) for n in range(len(clips))]
    most = None if settings.training is None else min(settings.training, len(videos))
    training = take(videos, policy, n=most, seed=settings.seed, named="real")
    training = only(fitted(training, geometry.in_time if sized else geometry), wanted)
    if len(training) < 2:
        raise ValueError(f"metrics=[remembered]: split {split} of {videos.place} has no clips of the sizes that were generated")
    with bar(bench.share, "features of training clips") as progress:
        theirs = bench.extractor.features(training, real=True, progress=progress)
    ours = bench.extractor.features(clips, real=False, progress=lambda done, total: None)
    if not bench.share.first:
        return {}, None
    found = neighbours(ours, theirs, real.features)
    nearest = found.distances.argsort()[:PAIRS].tolist()
    pairs = [
        {
            "number": number,
            "prompt": clips.prompt(number),
            "key": training.name(int(found.places[number])),
            "caption": training.prompt(int(found.places[number])),
            "distance": float(found.distances[number]),
            **size_of(training, int(found.places[number])),
        }
        for number in nearest
    ]
    files = written(bench.output / "nearest", training, [int(found.places[number]) for number in nearest])
    for pair, file in zip(pairs, files, strict=True):
        pair["file"] = str(file.relative_to(bench.output))
    told = {"remembered": found.remembered, "z": found.z, "usual": found.usual}
    about = {"extractor": bench.extractor.network.name, "training": len(training), **told, "pairs": pairs}
    return {"remembered": found.remembered, "remembered_z": found.z}, about
