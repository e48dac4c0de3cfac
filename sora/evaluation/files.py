"""Scores videos from any source against real ones: two folders, or a folder and a dataset; none of sora's networks is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.bench import Bench, RealSet, named
from sora.evaluation.measures.clips import conventions
from sora.evaluation.measures.continuation import check_continuation, continued
from sora.evaluation.measures.motion import held_in, measures_protocol
from sora.evaluation.sides import about_scored
from sora.evaluation.words import CONTINUATION, KNOWN, NEEDS, USUAL, chosen
from sora.gate.files import below
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.evaluation.settings import EvaluationSettings
    from sora.evaluation.videos.clips import ClipPolicy, Clips
    from sora.evaluation.videos.sets import DatasetVideos, FolderVideos
    from sora.system.work_sharing import Share

LOSSLESS = ("ffv1", "png", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "gif", "qtrle")
FOR_THE_PAGE = 24  # clips written for the report unless keep= sets a number
IMAGE = "image/"  # prefix of the codecs of images
EXACT_PIXELS = ("gbrp", "rgb24")  # pixel formats of lossless video, for codecs that may be lossy


def evaluate_files(settings: EvaluationSettings, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Take clips from both sides by their policies, and score the generated ones against the real ones."""
    from sora.evaluation.videos.clips import refuse_mixed, take
    from sora.evaluation.videos.sets import EVALUATION
    from sora.system import files as storage
    from sora.world.language import parse

    words = words_of(settings, share)
    for key in ("step", "vbench", "negative"):
        if getattr(settings, key) is not None:
            raise ValueError(f"{key}={getattr(settings, key)}: {settings.checkpoint} holds videos, and only a run has that; leave it out")
    scored = Path(settings.checkpoint)
    output = Path(settings.output) if settings.output else below(scored, "evaluation")
    if output.resolve() == scored.resolve():
        raise ValueError(f"output={output} is the folder that is scored; name another, or leave it out for {scored / 'evaluation'}")
    scoring.setting_of(settings)
    scoring.check_places(settings, output)
    network = scoring.network_of(settings, words)
    videos = opened(scored, settings, share)  # before anything is written to the scored folder
    bench = scoring.bench_of(settings, words, share, output=output, home=output, network=network)
    if share.first:
        storage.write_text(
            output / EVALUATION, "What is in this folder was written by sora evaluate, and is none of the videos around it.\n"
        )
    clips = take(videos, policy_of(settings, "generated"), n=settings.n, seed=settings.seed, named="generated")
    if len(clips) < 2:
        raise ValueError(f"{videos.place} has {counted(len(clips), 'video')}; scores need at least 2")
    prompts = [clips.prompt(number) for number in range(len(clips))]
    facts = [None if prompt is None else parse(prompt) for prompt in prompts]
    bare = [clips.name(number) for number, prompt in enumerate(prompts) if prompt is None]
    scoring.check_needs(words, facts, bare, uncaptioned=settings.uncaptioned)
    if bare and any("prompt" in NEEDS.get(word, ()) for word in words):
        share.say(f"left out of what is measured by prompts: {named(bare)} without a caption")
    sides, real = {"generated": clips}, None
    scoring.check_sets(bench, len(clips), sets=settings.trajectories)
    if bench.compares:
        real = real_clips(settings, share)
        sides |= {} if real is None else {"real": real}
        if bench.distances:
            refuse_mixed(sides, sized=settings.size is not None, rates=same_rates(settings))
    if codecs := lossy(clips.codecs()):
        share.say(f"beware: what is scored is compressed with loss ({', '.join(codecs)}), which moves distances; lossless files do not")
    figures, rows = scoring.measured(bench, clips, facts)
    against = Against()
    if bench.compares:
        against = compared_with(bench, settings, real, clips)
        rows = [{**row, **one} for row, one in zip(rows, against.rows or [{}] * len(rows), strict=True)]
    if not share.first:
        return {}
    figures |= against.figures
    protocol = protocol_of(settings, bench, against.real, clips, against.about)
    scores = {"kind": "videos", "figures": figures, "n": len(clips), "floor": scoring.floors(figures), "distances": against.distances}
    if bench.compares:
        scores["cautions"] = against.cautions
    if real is not None and settings.page:
        scores["real"] = beside(output, real, FOR_THE_PAGE)
    taken = clips.taken_sha256(sets=settings.trajectories if bench.compares else 1)
    subject = {"place": settings.checkpoint, "videos": videos.about(), "taken": taken}
    kept = shown(output / "clips", clips, FOR_THE_PAGE * settings.page if settings.keep is None else settings.keep)
    paths = [str(path.relative_to(output)) for path in kept]
    return scoring.finish(output, scores, protocol, subject=subject, preset=preset, rows=rows, clips=paths)


def words_of(settings: EvaluationSettings, share: Share) -> tuple[str, ...]:
    """The words of `metrics=`; without real videos, those that the file of statistics has features for."""
    alone = standing_alone(settings)
    words = chosen(settings.metrics, usual=USUAL["videos"], known=KNOWN["videos"], scored="videos")
    if alone is not None:
        words = held_in(alone, words, said=settings.metrics is not None, share=share)
    check_continuation(settings, words, alone=alone is not None)
    return words


@dataclass(frozen=True)
class Against:
    """The result of comparing with real clips. rows: of scored clips, if any. about: what the protocol records of continuations."""

    real: RealSet | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    distances: Sequence[Mapping[str, Any]] = ()
    cautions: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def compared_with(bench: Bench, settings: EvaluationSettings, real: Clips | None, clips: Clips) -> Against:
    """The distances to the real clips or to the file of statistics, and the comparison of continuations with the real futures."""
    theirs = scoring.real_set(bench, real)
    if real is None:
        check_statistics(settings, bench, theirs, clips)
    figures, distances, told = scoring.compared(bench, theirs, clips)
    if CONTINUATION not in bench.words or real is None:
        return Against(theirs, figures, distances, told)
    more, rows, beware, about = continued(bench, real, clips, settings)
    return Against(theirs, {**figures, **more}, distances, [*told, *beware], rows, {CONTINUATION: about})


def shown(folder: Path, clips: Clips, count: int) -> list[Path]:
    """Write the first clips as browsers can play them; return their paths."""
    from sora.evaluation.videos.clips import written

    return written(folder, clips, range(min(count, len(clips))))


def beside(output: Path, real: Clips, count: int) -> list[dict[str, Any]]:
    """Write real clips, spread over all, for the report; return their paths relative to the output, with their names and shapes."""
    from sora.evaluation.videos.clips import size_of, spread, written

    numbers = sorted(spread(len(real))[:count])
    paths = written(output / "real", real, numbers)
    names = [{"name": real.name(number), "prompt": real.prompt(number), **size_of(real, number)} for number in numbers]
    return [{"file": str(path.relative_to(output)), **about} for path, about in zip(paths, names, strict=True)]


def policy_of(settings: EvaluationSettings, side: str) -> ClipPolicy:
    """The clip policy of a side, "real" or "generated"."""
    from sora.evaluation.sides import check_windows
    from sora.evaluation.videos.clips import ClipPolicy

    policy = ClipPolicy(**{key: value for key, value in vars(getattr(settings, side)).items() if key != "n"})
    check_windows(policy, sets=settings.trajectories, statistics=settings.statistics if side == "real" else None, named=side)
    return policy


def real_folder(settings: EvaluationSettings) -> Path:
    """The single folder that `data=` names. Raises ValueError for none or several."""
    given = list(settings.data or ())
    if len(given) != 1:
        if given:
            told = f"data={given}: one dataset at a time is scored against; several are for the reconstructions of a VAE"
        elif settings.statistics is not None:
            told = f"statistics={settings.statistics} is not there yet; needs data=…, the real videos that it will stand for"
        else:
            told = "needs data=…, the real videos to score against"
        raise ValueError(told)
    return Path(given[0])


def opened(folder: Path, settings: EvaluationSettings, share: Share) -> DatasetVideos | FolderVideos:
    """The videos of a folder or a dataset; other files in it are reported."""
    from sora.evaluation.videos.sets import open_videos

    videos = open_videos(folder, split=settings.split, caption=settings.caption, sets=settings.sets, selection=settings.selection)
    share.tell(videos.lines())
    return videos


def standing_alone(settings: EvaluationSettings) -> Path | None:
    """The file of statistics that replaces the real videos; None if these are given, or the file does not exist yet."""
    file = None if settings.statistics is None else Path(settings.statistics)
    return file if settings.data is None and file is not None and file.is_file() else None


def real_clips(settings: EvaluationSettings, share: Share) -> Clips | None:
    """The clips of `data=`; None if only a file of statistics is given."""
    from sora.evaluation.videos.clips import take

    if standing_alone(settings) is not None:
        return None
    videos = opened(real_folder(settings), settings, share)
    real = take(videos, policy_of(settings, "real"), n=settings.real.n, seed=settings.seed, named="real")
    if len(real) < 2:
        raise ValueError(f"{videos.place} has {len(real)} real videos; a distance needs at least 2")
    return real


def check_statistics(settings: EvaluationSettings, bench: Bench, real: RealSet, clips: Clips) -> None:
    """Raise ValueError unless the clips of a file of statistics and the scored clips are of one kind."""
    from sora.evaluation.measures.extraction import shapes_of

    ours, rates = set(shapes_of(clips, bench.extractor.setting)), clips.about()["rates"]
    moves = any(frames > 1 for frames, _, _ in ours)  # a single frame has no frame rate
    if ours != set(real.shapes) or (same_rates(settings) and moves and rates != real.clips["rates"]):
        raise ValueError(
            f"statistics={settings.statistics} holds (frames, height, width) {sorted(set(real.shapes))} at {real.clips['rates']} fps, "
            f"what is scored is of {sorted(ours)} at {rates}; set generated.frames, generated.stride, size= or rates=any"
        )


def same_rates(settings: EvaluationSettings) -> bool:
    """Whether frame rates must agree. Raises ValueError for a word that is neither value of `rates=`."""
    if settings.rates not in ("same", "any"):
        raise ValueError(f"rates={settings.rates}: same (clips of other rates are refused) or any (they are scored together, as files are)")
    return settings.rates == "same"


def lossy(codecs: list[str]) -> list[str]:
    """The codecs among these that are lossy."""
    found = []
    for codec in codecs:
        name, _, pixels = codec.removeprefix(IMAGE).rpartition("/")
        # An image's pixel format is that of its decoder, which does not show how the file stores it.
        if not name.startswith(LOSSLESS) and (codec.startswith(IMAGE) or pixels not in EXACT_PIXELS):
            found.append(codec)
    return found


def protocol_of(settings: EvaluationSettings, bench: Any, real: Any, clips: Clips, about: Mapping[str, Any]) -> Any:
    """The protocol: all that the scores depend on except the scored videos, which are the subject."""
    from sora.metrics.extractors.features import describe
    from sora.metrics.protocol import Protocol

    setting = bench.extractor.setting
    return Protocol(
        dataset=real.dataset if real else {},
        real=real.clips if real else None,
        generated=about_scored(clips, sets=settings.trajectories if bench.compares else 1),
        prompts=None,
        pixels={**setting.pixels(), "codec": clips.codecs()},
        extractor=describe(bench.extractor.network) if bench.reads_extractor else None,
        distances=setting.distances() if bench.compares else None,
        sampling=None,
        measures={**conventions(bench.words), **measures_protocol(bench.words), **about} or None,
        seed=settings.seed,
    )
