"""Scoring a diffusion run: generate for prompts, then everything that can be measured of the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.heldout import convention, evaluate_loss
from sora.evaluation.measures import DISTANCES, MEASURES, chosen

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.configs.load import LoadedDiffusion
    from sora.data.index import Index
    from sora.data.video_sets import Clips
    from sora.evaluation.made import MadeVideos
    from sora.evaluation.sharing import Share
    from sora.generation.generator import Request

OF_RUNS = ("loss", "remembered")  # words that say something of a run, beside the videos that it makes
KNOWN = (*MEASURES, *DISTANCES, *OF_RUNS)
USUAL_N = 128


def evaluate_diffusion(config: DictConfig, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Generate for held-out prompts, and score adherence, quality and distribution distances."""
    from sora.configs.load import load_diffusion
    from sora.data.index import Index
    from sora.evaluation.files import real_folder
    from sora.evaluation.made import whole
    from sora.evaluation.targets import lengthened, plan_targets, prompts_protocol, to_request
    from sora.sample import make_generator

    index = Index.open(real_folder(config), config.split)
    targets = plan_targets(index, n=config.n or USUAL_N, split=config.split, caption=config.caption, seed=config.seed)
    of_world = any(target.facts is not None for target in targets)
    words = chosen(config.metrics, usual=("adherence", "frechet", "kvd") if of_world else ("frechet", "kvd"), known=KNOWN, scored="a run")
    if words == ("loss",):
        return evaluate_loss(config, share, preset)
    facts, (words, of_run) = [target.facts for target in targets] if of_world else None, parted(words)
    scoring.check_needs(words, facts)
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema)
    home = loaded.run / "evaluation"
    output = Path(config.output) if config.output else home / f"step-{loaded.step:08d}"
    bench = scoring.bench_of(config, words, share, output=output, home=output if config.output else home)
    clip = config.generated
    if clip.start != "first":
        raise ValueError(f"generated.start={clip.start}: of clips that are generated the first frames are taken; leave it at first")
    if clip.frames is not None:
        targets = lengthened(targets, clip.frames, stride=clip.stride, time=loaded.vae.stride[0])
    requests = [to_request(target, number, seed=config.seed) for number, target in enumerate(targets)]
    # Before hours of generating: whether there is anything to compare with.
    theirs = alike(index, [(frames_of(item.frames, clip), item.height, item.width) for item in targets], config) if bench.compares else None
    videos = generated(make_generator(loaded, config), requests, loaded, config, output=output, share=share)
    clips = whole(videos, frames=clip.frames, stride=clip.stride)
    figures, rows = scoring.measured(bench, clips, facts)
    rows = [{**row, "generated": str(path.relative_to(output))} for row, path in zip(rows, videos.paths, strict=True)]
    real, distances = None, []
    if theirs is not None:
        real = scoring.real_set(bench, theirs)
        found, distances = scoring.compared(bench, real, clips)
        figures |= found
    found, about = of_runs(of_run, bench, loaded, clips, real, config)
    figures |= found
    if not share.first:
        return {}
    protocol = protocol_of(config, bench, real, clips, index, prompts_protocol(targets, caption=config.caption))
    subject = {"run": str(loaded.run), "step": loaded.step, "ema": config.ema, "hashes": loaded.hashes}
    scores = {"kind": "diffusion", "figures": figures, "n": len(targets), "floor": scoring.floors(figures), "distances": distances}
    scores |= about
    if config.vbench is not None:
        from sora.evaluation.generating import export

        export(videos, Path(config.vbench))
    kept = keep(output, requests, clips, loaded, config)
    return scoring.finish(output, scores, protocol, subject=subject, preset=preset, rows=rows, clips=kept)


def parted(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of what is measured of videos, and of the run. Raises ValueError for one that needs distances, where there are none."""
    videos, run = (tuple(word for word in words if (word in OF_RUNS) is there) for there in (False, True))
    if "remembered" in run and not any(word in DISTANCES for word in videos):
        raise ValueError("metrics=[remembered]: features of real clips are compared, too; add a distance: metrics=[frechet,remembered]")
    return videos, run


def of_runs(
    words: Sequence[str], bench: Any, loaded: LoadedDiffusion, clips: Clips, real: Any, config: DictConfig
) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures that words of OF_RUNS ask for, and what else of them stands in the scores. On every process; the first has them."""
    from sora.evaluation.heldout import measured_loss
    from sora.evaluation.memory import remembered

    figures, about = {}, {}
    if "loss" in words:
        found, about["heldout"] = measured_loss(loaded, config, bench.share, output=bench.output)
        figures |= found
    if "remembered" in words:
        found, about["neighbours"] = remembered(bench, loaded, clips, real, config)
        figures |= found
    return figures, about


def generated(
    generator: Any, requests: Sequence[Request], loaded: LoadedDiffusion, config: DictConfig, *, output: Path, share: Share
) -> MadeVideos:
    """The clips of the requests, as far as they are not there yet."""
    from sora.evaluation.generating import generate
    from sora.sample import describe

    about = {key: value for key, value in describe(loaded, config).items() if key != "trained_by"}
    about["checkpoint"] = {key: value for key, value in about["checkpoint"].items() if key != "run"}  # a run may be moved
    about |= {"device": str(generator.device), "budget": config.budget}
    with scoring.bar(share, f"generating {len(requests)} clips") as progress:
        return generate(generator, requests, folder=output / "generated", about=about, share=share, progress=progress)


def frames_of(frames: int, clip: DictConfig) -> int:
    """How many frames are scored of a clip that was generated with so many."""
    return clip.frames or 1 + (frames - 1) // clip.stride


def alike(index: Index, generated: Sequence[tuple[int, int, int]], config: DictConfig) -> Clips:
    """The real clips of the (frames, height, width) that are generated: both sides draw from one mixture then."""
    from sora.data.video_sets import DatasetVideos, only, take
    from sora.evaluation.files import policy_of

    videos = DatasetVideos(index, caption=config.caption)
    real = take(videos, policy_of(config.real), n=config.real.n, seed=config.seed, named="real")
    real = only(real, generated if config.size is None else [kind[:1] for kind in generated])
    if len(real) < 2:
        raise ValueError(
            f"split {config.split} of {index.folder} has no clips of the sizes that are generated; choose another split=, or bring "
            "both sides to one kind: real.frames and generated.frames, size="
        )
    return real


def protocol_of(config: DictConfig, bench: Any, real: Any, clips: Clips, index: Any, prompts: dict[str, Any]) -> Any:
    """All that the scores depend on beside the run."""
    from omegaconf import OmegaConf

    from sora.metrics.extractors.features import describe
    from sora.metrics.protocol import Protocol

    setting = bench.extractor.setting
    return Protocol(
        dataset=real.dataset if real else {"fingerprint": index.dataset_fingerprint, "split": config.split, "clips": len(index)},
        real=real.clips if real else None,
        generated=clips.about(),
        prompts=prompts,
        pixels={**setting.pixels(), "codec": clips.codecs()},
        extractor=describe(bench.extractor.network) if bench.compares else None,
        distances=setting.distances() if bench.compares else None,
        sampling={
            "sampler": OmegaConf.to_container(config.sampler),
            "guidance": OmegaConf.to_container(config.guidance),
            "steps": config.steps,
            "shift": config.shift,
            "first": config.first,
            "seed": config.seed,
        },
        measures={"loss": convention(config)} if "loss" in (config.metrics or ()) else None,
        seed=config.seed,
    )


def keep(output: Path, requests: Sequence[Request], clips: Clips, loaded: LoadedDiffusion, config: DictConfig) -> list[str]:
    """Write the first clips as `sora sample` does, to look at; their paths, relative to the output."""
    import torch

    from sora.sample import describe, write_samples

    count = len(requests) if config.keep is None else min(config.keep, len(requests))
    shown = [torch.from_numpy(clips.videos.read(number, 0, requests[number].frames)) for number in range(count)]
    paths = write_samples(output / "clips", requests[:count], shown, about=describe(loaded, config)) if count else []
    return [str(path.relative_to(output)) for path in paths]
