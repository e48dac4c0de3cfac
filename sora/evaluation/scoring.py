"""Compares two sets of clips: distances between their distributions, scores of single clips, and the file of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import sides
from sora.evaluation.bench import Bench, RealSet, bar, named
from sora.evaluation.measures.clips import MEASURES, Seen
from sora.evaluation.words import NEEDS, check_uncaptioned, needs_extractor, of_words
from sora.system import files as storage
from sora.system.terminal import counted, say

if TYPE_CHECKING:
    from sora.evaluation.measures.extraction import Setting
    from sora.evaluation.settings import EvaluationSettings
    from sora.evaluation.videos.clips import Clips
    from sora.metrics.extractors.features import VideoFeatures
    from sora.metrics.protocol import Protocol
    from sora.system.work_sharing import Share


WHOLE, MAY_BE_NULL = ("n", "seed", "trajectories", "ddof", "bootstrap", "permutations", "neighbours", "keep"), ("n", "keep")
SWITCHES = ("crop", "quantise", "page")


def setting_of(settings: EvaluationSettings) -> Setting:
    """How clips are scored. Raises ValueError for an invalid size."""
    from sora.evaluation.measures.extraction import Setting

    size = size_asked(settings.size)
    check_settings(settings)
    return Setting(
        size=size,
        kernel=settings.kernel,
        crop=settings.crop,
        quantise=settings.quantise,
        ddof=settings.ddof,
        bootstrap=settings.bootstrap,
        permutations=settings.permutations,
        neighbours=settings.neighbours,
        trajectories=settings.trajectories,
        seed=settings.seed,
    )


def size_asked(said: Any) -> tuple[int, int] | None:
    """The (height, width) of `size=`: one number for a square, or WIDTHxHEIGHT; None keeps sizes. A list of two different numbers is
    refused, because it does not show which is the width."""
    from sora.generation.samples import LARGEST
    from sora.patches.geometry import PIXELS

    sides = [said, said] if isinstance(said, int) else list(said) if not isinstance(said, str | None) else None
    if isinstance(said, str) and (found := PIXELS.fullmatch(said.strip())):
        sides = [int(found[2]), int(found[1])]
    if said is None:
        return None
    if sides is None or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"size={said}: give one side of a square, or WIDTHxHEIGHT in pixels, such as 64x48")
    if max(sides) > LARGEST:
        raise ValueError(f"size={said} is above {LARGEST:,}, the most pixels of a side that are scored; lower size")
    if not isinstance(said, str) and sides[0] != sides[1]:
        meant = " or ".join(f"size={width}x{height}" for height, width in (sides, sides[::-1]))
        raise ValueError(f"size=[{sides[0]},{sides[1]}] does not say which is the width: write WIDTHxHEIGHT, {meant}")
    return sides[0], sides[1]


def check_settings(settings: EvaluationSettings) -> None:
    """Raise ValueError, before any work, for settings that no distance can be measured with."""
    from sora.metrics.distribution.permutation import LEAST_PERMUTATIONS
    from sora.metrics.distribution.resampling import LEAST_REPEATS
    from sora.metrics.extractors.pixels import KERNELS

    for key in (*WHOLE, *SWITCHES):
        value, kind, told = getattr(settings, key), *((int, "a whole number") if key in WHOLE else (bool, "true or false"))
        if type(value) is not kind and not (key in MAY_BE_NULL and value is None):
            raise ValueError(f"{key}={value}: give {told}")
    kernels = [name for name in KERNELS if name != "none"]
    for wrong, told in (
        (settings.trajectories < 1, f"trajectories={settings.trajectories}: what is scored falls into at least one set"),
        (settings.kernel not in kernels, f"kernel={settings.kernel}: choose from {', '.join(kernels)}; size=null leaves sizes as they are"),
        (settings.ddof not in (0, 1), f"ddof={settings.ddof}: covariances are unbiased (1) or biased (0)"),
        (
            settings.bootstrap != 0 and settings.bootstrap < LEAST_REPEATS,
            f"bootstrap={settings.bootstrap}: an interval takes at least {LEAST_REPEATS} repeats; 0 leaves it out",
        ),
        (
            settings.permutations != 0 and settings.permutations < LEAST_PERMUTATIONS,
            f"permutations={settings.permutations}: a p value below 0.05 takes at least {LEAST_PERMUTATIONS}; 0 leaves floors and p out",
        ),
        (settings.neighbours < 1, f"neighbours={settings.neighbours}: give at least 1"),
        (settings.keep is not None and settings.keep < 0, f"keep={settings.keep}: give 0 or more, or null"),
    ):
        if wrong:
            raise ValueError(told)


def check_places(settings: EvaluationSettings, output: Path) -> None:
    """Raise ValueError, before any work, for paths that cannot be written: a file in place of a folder, or the reverse."""
    from sora.generation.samples import check_place

    check_place(output, key="output")
    if settings.cache and Path(settings.cache).exists() and not Path(settings.cache).is_dir():
        raise ValueError(f"cache={settings.cache} is a file; name a folder")
    if settings.statistics and Path(settings.statistics).is_dir():
        raise ValueError(f"statistics={settings.statistics} is a folder; name a file")


def check_sets(bench: Bench, n: int, *, sets: int) -> None:
    """Raise ValueError unless n clips divide into `sets` sets of one size, each with enough clips for the words."""
    neighbours = bench.extractor.setting.neighbours
    if "precision" in bench.words and n // sets <= neighbours:
        raise ValueError(f"metrics=[precision]: neighbours={neighbours} needs more clips than {n // sets}; take more, or set it lower")
    if bench.compares and (n % sets or n // sets < 2):
        raise ValueError(f"n={n}: clips do not fall into trajectories={sets} sets of one size, at least 2 each; set n= to a multiple")


def network_of(settings: EvaluationSettings, words: Sequence[str]) -> VideoFeatures:
    """The extractor. It is tried if a word needs it, so that missing or wrong weights are reported before any video is read."""
    from sora.evaluation.measures.clips import check_extractor
    from sora.evaluation.measures.extraction import tried
    from sora.system.devices import choose_device

    network = settings.extractor()
    check_extractor(words, network)
    if needs_extractor(words):
        tried(network, choose_device(settings.device))
    return network


def bench_of(
    settings: EvaluationSettings, words: Sequence[str], share: Share, *, output: Path, home: Path, network: VideoFeatures | None = None
) -> Bench:
    """The bench of an evaluation; removes what killed evaluations left half-written. home: where features are cached, unless the settings
    name a folder. network: from an earlier call of `network_of`, if any."""
    from sora.evaluation.measures.extraction import Extractor
    from sora.system.devices import choose_device

    check_places(settings, output)
    network = network_of(settings, words) if network is None else network
    share.hold(output)
    if share.first:
        storage.sweep(output)
    cache = Path(settings.cache) if settings.cache else home / "features"
    extractor = Extractor(network=network, setting=setting_of(settings), cache=cache, share=share, device=choose_device(settings.device))
    return Bench(extractor, words, output, Path(settings.statistics) if settings.statistics else None)


# ---- distances


def real_set(bench: Bench, real: Clips | None) -> RealSet:
    """The features of the real clips, or of `statistics=FILE`, which must agree with the clips if both are given. A file that does not
    exist yet is written."""
    from sora.evaluation.measures.extraction import shapes_of
    from sora.metrics.extractors.features import describe
    from sora.metrics.feature_sets import load_features, read_features, save_features

    about: dict[str, Any] = {"extractor": describe(bench.extractor.network), "pixels": bench.extractor.setting.pixels()}
    if real is None:
        assert bench.statistics is not None
        found = read_features(bench.statistics)
        if not {"dataset", "real", "scored"} <= set(found.protocol):
            raise ValueError(f"statistics={bench.statistics} does not say of which clips it is; let sora evaluate data=… write one")
        load_features(bench.statistics, {**found.protocol, **about})  # raises if the extractor or the pixels differ
        if found.features.shape[1] != bench.extractor.network.dimension:
            wanted = f"{bench.extractor.network.name} has {bench.extractor.network.dimension}"
            raise ValueError(f"statistics={bench.statistics} holds features of {found.features.shape[1]} numbers, and {wanted}")
        shape, clips = found.protocol["scored"], found.protocol["real"]
        if "taken" not in clips:  # an older file: its features identify the clips
            clips = {**clips, "taken": f"not recorded; features {found.sha256}"}
            bench.share.say(f"statistics={bench.statistics} is of an earlier version and says not which clips it is of")
        return RealSet(found.features, [tuple(shape)] * len(found.features), found.protocol["dataset"], clips, None, found.more)
    import torch

    from sora.evaluation.measures import motion

    check_sets(bench, len(real), sets=1)
    shapes, dataset, clips = shapes_of(real, bench.extractor.setting), real.videos.about(), sides.about_real(real)
    about |= {"dataset": dataset, "real": clips, "scored": list(shapes[0])}
    if not bench.extracts:
        return RealSet(torch.zeros(len(real), 0, dtype=torch.float32), shapes, dataset, clips, real)
    if bench.statistics is not None and len(set(shapes)) > 1:
        raise ValueError(f"statistics={bench.statistics} holds clips of one shape, and these are {', '.join(clips['shapes'])}; set size=")
    if bench.statistics is not None and bench.statistics.is_file():
        return RealSet(load_features(bench.statistics, about).features, shapes, dataset, clips, real)
    with bar(bench.share, "features of the real clips") as progress:
        features = bench.extractor.features(real, real=True, progress=progress)
    if bench.statistics is not None:
        moving = motion.features_of(bench, real)
    if bench.statistics is not None and bench.share.first:
        save_features(bench.statistics, features, about, more=moving)
        print(f"features of the {len(features)} real clips are in {bench.statistics}")
    return RealSet(features, shapes, dataset, clips, real)


def compared(bench: Bench, real: RealSet, fake: Clips, *, pairs: bool = False) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """The figures of the words, the rows of single shapes, and the cautions. Every process extracts features; the first computes the
    figures. pairs: the scored clips are reconstructions of the real ones."""
    from sora.evaluation.measures import motion
    from sora.metrics.distribution.cautions import paired

    moving, beware = motion.compared(bench, real, fake)
    told = ([paired()] if pairs else sides.of_rates(real.clips, fake.about())) if bench.distances else []
    if not bench.extracts:
        return moving, [], sides.once([*told, *beware])
    found, rows, more = by_extractor(bench, real, fake)
    return {**found, **moving}, rows, sides.once([*told, *more, *beware])


def by_extractor(bench: Bench, real: RealSet, fake: Clips) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """The figures, rows and cautions from the features of the extractor that the command chose."""
    from sora.evaluation.measures.extraction import averaged, distances, shapes_of
    from sora.metrics.distribution.cautions import cautions

    with bar(bench.share, "features of what is scored") as progress:
        features = bench.extractor.features(fake, real=False, progress=progress)
    if not bench.share.first:
        return {}, [], []
    setting, network, sets = bench.extractor.setting, bench.extractor.network, bench.extractor.setting.trajectories
    shapes, videos = shapes_of(fake, setting), sides.several(real, fake)
    asked = {"repeats for the intervals": setting.bootstrap, "random splits for floors and p": setting.permutations}
    repeats = "".join(f", {count} {what}" for what, count in asked.items() if count)
    of = ["", ""] if videos is None else [f" of {counted(len(set(side)), 'video')}" for side in videos]
    print(f"distances of {counted(len(features), 'clip')}{of[1]} to {counted(len(real.features), 'real one')}{of[0]}{repeats}", flush=True)
    found, rows = zip(
        *(
            distances(
                real.features, real.shapes, features[place::sets], shapes[place::sets], network=network, setting=setting, videos=videos
            )
            for place in range(sets)
        ),
        strict=True,
    )
    told = [*cautions(real.features, features[::sets]), *sides.too_few(bench, len(real.features), len(fake))]
    return of_words(averaged(found), bench.words), [row for each in rows for row in each], told


# ---- single clips


def measured(bench: Bench, clips: Clips, facts: Sequence[Any] | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures of the words that measure single clips, and a row for each clip: its prompt, its shape, its score for each word."""
    words = [word for word in bench.words if word in MEASURES]

    def of_clip(number: int) -> dict[str, Any]:
        shape = clips.shape(number)
        row = {"name": clips.name(number), "prompt": clips.prompt(number), "frames": clips.frames(number)}
        row |= {"height": shape.height, "width": shape.width, "fps": shape.fps}
        if not words:
            return row
        asked = None if facts is None else facts[number]
        frames = bench.extractor.setting.pictures(clips.read(number))
        seen = Seen(frames, shape.fps, clips.prompt(number), asked, bench.extractor.network, bench.extractor.device)
        fit = [word for word in words if seen.prompt is not None or "prompt" not in NEEDS[word]]
        return {**row, **{word: MEASURES[word].of_clip(seen) for word in fit}}

    with bar(bench.share, f"measuring {', '.join(words)}") if words else nullcontext() as progress:
        rows = bench.share.rows(len(clips), of_clip, progress)
    figures: dict[str, float] = {}
    for word in words:
        figures |= MEASURES[word].of_all([row[word] for row in rows if word in row])
    return figures, rows


def check_needs(words: Sequence[str], facts: Sequence[Any] | None, unprompted: Sequence[str] = (), *, uncaptioned: str = "refuse") -> None:
    """Raise ValueError, before any work, for a word that needs what these clips lack. unprompted: names of clips without a prompt; with
    uncaptioned="leave_out", metrics of prompts skip these."""
    check_uncaptioned(uncaptioned)
    for word in words:
        needs = NEEDS.get(word, ())
        none = facts is not None and len(unprompted) == len(facts)
        if "prompt" in needs and unprompted and (uncaptioned == "refuse" or none):
            leave = "" if none else ", or leave such clips out with uncaptioned=leave_out"
            raise ValueError(
                f"metrics=[{word}]: {named(unprompted)} without a caption; put it beside the video as NAME.txt, or as "
                f'{{"prompt": …}} in NAME.json{leave}'
            )
        asked = [fact for fact in facts or () if fact is not None] if unprompted else facts
        if "facts" in needs and (asked is None or any(fact is None or not fact.count for fact in asked)):
            raise ValueError(
                f"metrics=[{word}]: {word} is measured on prompts of the built-in world, and these are none; leave it out: "
                "metrics=[frechet,kvd]"
            )


# ---- the file of scores


def finish(
    output: Path,
    scores: Mapping[str, Any],
    protocol: Protocol,
    *,
    subject: Mapping[str, Any],
    preset: Mapping[str, Any] | None,
    rows: Any,
    clips: Any,
) -> dict[str, Any]:
    """Write `scores.json`: figures, the protocol with its hash, what was scored, a row for each clip, and the stored clips."""
    from sora.evaluation.measures.clips import cautions
    from sora.metrics.protocol import preset_lines
    from sora.runs.run import code_version

    told = [*scores.get("cautions", ()), *cautions(scores["figures"])]
    written = {
        **scores,
        "cautions": told,
        "protocol_sha256": protocol.sha256,
        "protocol": protocol.to_json(),
        "subject": dict(subject),
        "preset": preset,
        "code": code_version(),
        "rows": rows,
        "clips": clips,
    }
    storage.write_json(output / "scores.json", written)
    for line in (*preset_lines(preset or {}), *told):
        say(line)
    print(f"the scores are in {output / 'scores.json'}, over {counted(scores['n'], 'clip')}:")
    return {**written, "output": output}


def floors(figures: Mapping[str, float]) -> dict[str, float]:
    """The expected figures if both sides had the same distribution."""
    return {name: value for name, value in figures.items() if name.endswith("floor") and "over" not in name}
