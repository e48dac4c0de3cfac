"""Scores a diffusion run: generates clips for prompts and computes all metrics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.bench import bar, named
from sora.evaluation.measures.clips import conventions
from sora.evaluation.measures.loss import convention, evaluate_loss
from sora.evaluation.measures.motion import measures_protocol
from sora.evaluation.words import DISTANCES, KNOWN, OF_RUNS, USUAL, chosen
from sora.gate.files import below
from sora.patches.geometry import Geometry
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.assembly.generation import Sampling
    from sora.assembly.load import LoadedDiffusion
    from sora.evaluation.settings import EvaluationSettings, Side
    from sora.evaluation.videos.clips import Clips
    from sora.evaluation.videos.made import MadeVideos
    from sora.evaluation.videos.sets import DatasetVideos, FolderVideos
    from sora.evaluation.videos.targets import Target
    from sora.generation.generator import Request
    from sora.system.work_sharing import Share

USUAL_N = 128


def evaluate_diffusion(settings: EvaluationSettings, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Generate clips for held-out prompts, and compute adherence, quality and distances between distributions."""
    from sora.assembly.generation import described
    from sora.assembly.load import load_diffusion
    from sora.evaluation.files import opened, real_folder
    from sora.evaluation.measures.loss import measured_loss
    from sora.evaluation.measures.memorisation import check_training, remembered
    from sora.evaluation.videos.made import whole
    from sora.evaluation.videos.targets import fitting, prompts_protocol

    if settings.metrics == ("loss",):
        return evaluate_loss(settings, share, preset)
    network = scoring.network_of(settings, settings.metrics or ("frechet",))
    clip, videos = policy_of_generated(settings), opened(real_folder(settings), settings, share)
    loaded = load_diffusion(Path(settings.checkpoint), settings.step, ema=settings.ema)
    geometry = Geometry(loaded.vae.stride, loaded.patchifier.size)
    targets, bare = targets_of(videos, geometry, settings, share)
    facts = [target.facts for target in targets] if any(target.facts is not None for target in targets) else None
    usual = [word for word in USUAL["diffusion"] if facts is not None or word != "adherence"]
    words, of_run = parted(chosen(settings.metrics, usual=usual, known=KNOWN["diffusion"], scored="a run"))
    scoring.check_needs(words, facts)
    output = Path(settings.output) if settings.output else below(loaded.run, "evaluation", f"step-{loaded.step:08d}")
    home = output if settings.output else output.parent
    bench = scoring.bench_of(settings, words, share, output=output, home=home, network=network)
    targets = fitting(targets, geometry, frames=clip.frames, stride=clip.stride)
    requests = requests_of(targets, loaded, settings, share)
    scoring.check_sets(bench, len(targets), sets=settings.trajectories)
    check_written(settings, requests, output)
    if "remembered" in of_run:
        check_training(loaded, settings)
    # Before hours of generating: everything that the clips are compared with, and metrics that need no clips.
    kinds = [(frames_of(item.frames, clip), item.height, item.width) for item in targets]
    originals = alike(videos, kinds, geometry, settings) if bench.compares else None
    real = scoring.real_set(bench, originals) if originals is not None else None
    figures, about = {}, {}
    if "loss" in of_run:
        figures, about["heldout"] = measured_loss(loaded, settings, share)
    how = settings.sampling()
    made = generated(loaded, how, requests, device=settings.device, output=output, share=share)
    clips = whole(made, frames=clip.frames, stride=clip.stride)
    found, rows = scoring.measured(bench, clips, facts)
    rows = [{**row, "generated": str(path.relative_to(output))} for row, path in zip(rows, made.paths, strict=True)]
    figures, distances, cautions = {**found, **figures}, [], []
    if real is not None:
        found, distances, cautions = scoring.compared(bench, real, clips)
        figures |= found
    if real is not None and "remembered" in of_run:
        found, about["neighbours"] = remembered(bench, loaded, clips, real, geometry, settings)
        figures |= found
    if not share.first:
        return {}
    subject = {"run": str(loaded.run), "step": loaded.step, "ema": loaded.ema, "hashes": loaded.hashes}
    scores = {"kind": "diffusion", "figures": figures, "n": len(targets), "floor": scoring.floors(figures), "distances": distances}
    scores |= about | ({"uncaptioned": bare} if bare else {})
    if real is not None and originals is not None:
        scores |= seen_beside(bench, originals, cautions, page=settings.page)
    kept = keep(output, made, clips, settings, described(loaded, how))
    protocol = protocol_of(settings, bench, real, clips, videos, prompts_protocol(targets), how.about)
    written = scoring.finish(output, scores, protocol, subject=subject, preset=preset, rows=rows, clips=kept)
    export_for_vbench(made, settings)  # last, so that a failure does not lose the scores
    return written


def export_for_vbench(made: MadeVideos, settings: EvaluationSettings) -> None:
    """Write the clips to the folder of `vbench=`, if it is set."""
    if settings.vbench is not None:
        from sora.evaluation.videos.generating import export

        export(made, Path(settings.vbench))


def seen_beside(bench: scoring.Bench, originals: Clips, cautions: list[str], *, page: bool) -> dict[str, Any]:
    """The cautions and the real clips that the report shows beside the figures."""
    from sora.evaluation.files import FOR_THE_PAGE, beside

    told: dict[str, Any] = {"cautions": cautions}
    return {**told, "real": beside(bench.output, originals, FOR_THE_PAGE * page)}


def targets_of(
    videos: DatasetVideos | FolderVideos, geometry: Geometry, settings: EvaluationSettings, share: Share
) -> tuple[list[Target], list[str]]:
    """The clips to generate, and the names of the clips without a caption, which are printed."""
    from sora.evaluation.videos.targets import plan_targets

    n, asked = USUAL_N if settings.n is None else settings.n, {"split": settings.split, "caption": settings.caption, "seed": settings.seed}
    targets, bare = plan_targets(videos, geometry, n=n, **asked, uncaptioned=settings.uncaptioned)
    if bare:
        share.say(f"left out: {named(bare)} without a caption")
    return targets, bare


def requests_of(targets: Sequence[Target], loaded: LoadedDiffusion, settings: EvaluationSettings, share: Share) -> list[Request]:
    """The requests for the targets; prints which of their words the text encoder does not read."""
    from sora.assembly.load import fill_of
    from sora.evaluation.videos.targets import to_request
    from sora.generation.prompts import negative_of, with_cuts
    from sora.text.limits import with_fill

    negative = negative_of(settings.negative)
    plain = [to_request(target, number, seed=settings.seed, negative=negative) for number, target in enumerate(targets)]
    requests, told = with_cuts(plain, with_fill(loaded.encoder.limits(), fill_of(loaded.config)))
    for line in told:
        share.say(line)
    return requests


def policy_of_generated(settings: EvaluationSettings) -> Side:
    """The frames and stride of the side `generated`. Raises ValueError for its keys that choose among more frames or videos."""
    clip = settings.generated
    for key, only in (("windows", 1), ("start", "first"), ("short", "refuse"), ("choose", "first")):
        if (said := getattr(clip, key)) != only:
            raise ValueError(
                f"generated.{key}={said}: clips are generated as long and as many as are scored, and all are taken from their first "
                f"frame; leave it at {only}"
            )
    if clip.stride < 1 or (clip.frames is not None and clip.frames < 1):
        raise ValueError(f"generated.frames={clip.frames} and generated.stride={clip.stride}: both are at least 1")
    return clip


def check_written(settings: EvaluationSettings, requests: Sequence[Request], output: Path) -> None:
    """Raise ValueError, before any work, for clips that cannot be written beside the scores, or to where VBench looks for them."""
    from sora.evaluation.videos.generating import check_vbench
    from sora.generation.samples import check_place, check_videos

    check_videos(kept_of(settings, requests), None)
    if settings.vbench is not None:
        check_place(Path(settings.vbench), key="vbench")
        check_vbench(Path(settings.vbench), [request.prompt for request in requests], generated=output / "generated")


def kept_of(settings: EvaluationSettings, requests: Sequence[Request]) -> Sequence[Request]:
    """The requests whose clips are written for the report: the first `keep`, or all."""
    return requests if settings.keep is None else requests[: settings.keep]


def parted(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split words into those that measure videos and those that measure the run. Raises ValueError if one lacks a distance it needs."""
    videos, run = (tuple(word for word in words if (word in OF_RUNS) is there) for there in (False, True))
    if "remembered" in run and not any(word in DISTANCES for word in videos):
        raise ValueError("metrics=[remembered]: features of real clips are compared, too; add a distance: metrics=[frechet,remembered]")
    return videos, run


def generated(
    loaded: LoadedDiffusion, how: Sampling, requests: Sequence[Request], *, device: str, output: Path, share: Share
) -> MadeVideos:
    """The clips of the requests; only those that do not exist yet are generated."""
    from sora.assembly.generation import described, generator_of
    from sora.evaluation.videos.generating import generate
    from sora.system.devices import choose_device

    generator = generator_of(loaded, how, choose_device(device))
    about = {key: value for key, value in described(loaded, how).items() if key != "trained_by"}
    about["checkpoint"] = {key: value for key, value in about["checkpoint"].items() if key != "run"}  # a run may move
    about |= {"device": str(generator.device), "budget": how.budget}
    with bar(share, f"generating {counted(len(requests), 'clip')}", "step") as progress:
        return generate(generator, requests, folder=output / "generated", about=about, share=share, progress=progress)


def frames_of(frames: int, clip: Side) -> int:
    """The number of scored frames of a clip that was generated with `frames`."""
    return clip.frames or 1 + (frames - 1) // clip.stride


def alike(
    videos: DatasetVideos | FolderVideos, generated: Sequence[tuple[int, int, int]], geometry: Geometry, settings: EvaluationSettings
) -> Clips:
    """The real clips of the sizes (frames, height, width) that are generated, so that both sides have the same mixture. They are cropped to
    sizes that the network makes, as training clips are; with `size=`, whole frames are resized instead."""
    from sora.evaluation.files import policy_of
    from sora.evaluation.videos.clips import fitted, only, take

    real = take(videos, policy_of(settings, "real"), n=settings.real.n, seed=settings.seed, named="real")
    real = fitted(real, geometry if settings.size is None else geometry.in_time)
    real = only(real, generated if settings.size is None else [kind[:1] for kind in generated])
    if len(real) < 2:
        raise ValueError(
            f"{videos.place} has {counted(len(real), 'clip')} of the sizes that are generated, and a distance needs two or more; choose "
            "another split=, or bring both sides to one kind: real.frames and generated.frames, size="
        )
    return real


def protocol_of(
    settings: EvaluationSettings, bench: Any, real: Any, clips: Clips, videos: Any, prompts: dict[str, Any], how: Mapping[str, Any]
) -> Any:
    """The protocol: all that the scores depend on except the run."""
    from sora.generation.prompts import negative_of
    from sora.metrics.extractors.features import describe
    from sora.metrics.protocol import Protocol

    setting = bench.extractor.setting
    loss = {"loss": convention(settings)} if "loss" in (settings.metrics or ()) else {}
    return Protocol(
        dataset=real.dataset if real else videos.about(),
        real=real.clips if real else None,
        generated=clips.about(),
        prompts=prompts,
        pixels={**setting.pixels(), "codec": clips.codecs()},
        extractor=describe(bench.extractor.network) if bench.reads_extractor else None,
        distances=setting.distances() if bench.compares else None,
        sampling={
            **{key: value for key, value in how.items() if key != "stretch"},
            "seed": settings.seed,
            **({"negative": negative} if (negative := negative_of(settings.negative)) else {}),  # older protocols lack the key
        },
        measures={**loss, **conventions(bench.words), **measures_protocol(bench.words)} or None,
        seed=settings.seed,
    )


def keep(output: Path, made: MadeVideos, clips: Clips, settings: EvaluationSettings, making: Mapping[str, Any]) -> list[str]:
    """Write the first clips as `sora sample` does, for the report; return their paths relative to the output."""
    import torch

    from sora.generation.samples import write_samples

    asked: Any = made.asked
    requests = kept_of(settings, asked)
    shown = [torch.from_numpy(clips.videos.read(number, 0, requests[number].frames)) for number in range(len(requests))]
    paths = write_samples(output / "clips", requests, shown, about=making) if requests else []
    return [str(path.relative_to(output)) for path in paths]
