"""Scores a VAE: reconstructions of held-out clips of each dataset against their originals, and the distance between the two sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.bench import bar
from sora.evaluation.measures.motion import measures_protocol
from sora.evaluation.words import DISTANCES, KNOWN, USUAL, chosen
from sora.gate.files import below
from sora.metrics.scored import MOTION
from sora.patches.geometry import Geometry
from sora.system import files as storage

if TYPE_CHECKING:
    from sora.evaluation.bench import Bench
    from sora.evaluation.settings import EvaluationSettings
    from sora.evaluation.videos.clips import Clips
    from sora.system.work_sharing import Share

USUAL_N = 128
SHAPE = ("frames", "height", "width")  # fields of a row
SUMS = ("videos", "exact_frames")  # of a clip's scores, those that are summed over clips; others are averaged
MEASURES = {
    "psnr": "uint8 RGB, mean over frames of a clip, then over clips",
    "ssim": "gaussian 11x11 sigma 1.5, valid windows, per channel, C1=0.01^2, C2=0.03^2",
    "crop": "frames to 1 + a multiple of the time stride, sides to multiples of the strides, from the start",
    "latents": "posterior means",
}


@dataclass(frozen=True)
class Copy:
    """What a reconstruction's file holds."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float


def evaluate_vae(settings: EvaluationSettings, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reconstruct up to n held-out clips of each dataset; compute PSNR and SSIM, and the distances that `metrics=` asks for."""
    from sora.assembly.load import load_vae
    from sora.system.devices import choose_device

    words = chosen(settings.metrics, usual=USUAL["vae"], known=KNOWN["vae"], scored="a VAE")
    loaded = load_vae(Path(settings.checkpoint), settings.step, ema=settings.ema)
    check_clips(settings, loaded.vae.stride)
    vae = loaded.vae.to(choose_device(settings.device))
    name = f"step-{loaded.step:08d}" if loaded.step else "vae"
    output = Path(settings.output) if settings.output else below(settings.checkpoint, "evaluation", name)
    bench = scoring.bench_of(settings, [word for word in words if word in (*DISTANCES, *MOTION)], share, output=output, home=output)
    figures, rows, about, reals, fakes, paths, cautions = {}, [], {}, {}, {}, [], []
    for name, folder in dataset_folders(settings.data).items():
        one = replace(bench, output=output / "reconstructions" / name)
        found, clip_rows, real, fake, told, taken = score_dataset(vae, loaded.hashes, folder, settings, one)
        figures |= {f"{name}_vae_{key}": value for key, value in found.items()}
        rows += [{"dataset": name, **row} for row in clip_rows]
        paths += [str((one.output / row["file"]).relative_to(output)) for row in clip_rows if "file" in row]
        about[name] = {**real.videos.about(), "clips": len(real)}
        reals[name], fakes[name] = real.about() | {"taken": taken}, fake.about()
        cautions += [f"{name}: {line}" for line in told]
    if not share.first:
        return {}
    protocol = protocol_of(settings, bench, about, reals, fakes)
    scores = {"kind": "vae", "figures": figures, "n": len(rows), "floor": scoring.floors(figures), "cautions": cautions}
    subject = {"run": settings.checkpoint, "vae": loaded.hashes, "step": loaded.step}
    return scoring.finish(output, scores, protocol, subject=subject, preset=preset, rows=rows, clips=paths)


def check_clips(settings: EvaluationSettings, stride: tuple[int, int, int]) -> None:
    """Raise ValueError for keys that do not apply to reconstructions, because there is exactly one for each real clip."""
    real, given = settings.real, settings.generated
    usual = {"frames": None, "stride": 1, "windows": 1, "start": "first", "short": "refuse", "choose": "first"}
    for key, value in usual.items():
        said, taken = getattr(given, key), getattr(real, key)
        if said not in (value, taken):
            raise ValueError(
                f"generated.{key}={said}: reconstructions are of the clips that real.{key}={taken} takes; set that, and leave "
                f"generated.{key} out"
            )
    if real.windows != 1:
        raise ValueError(f"real.windows={real.windows}: a VAE is scored by one clip of each video; leave it out")
    if real.n not in (None, settings.n):
        raise ValueError(f"real.n={real.n}: as many originals as reconstructions are compared; set n={real.n}")
    if real.frames is not None and (fits := Geometry(stride).most_frames(real.frames)) != real.frames:
        raise ValueError(
            f"real.frames={real.frames}: this VAE takes 1 + a multiple of {stride[0]} frames; set {fits} or {fits + stride[0]}"
        )
    if settings.negative is not None:
        raise ValueError("negative: only clips that a run generates have prompts; leave it out")
    if settings.vbench is not None:
        raise ValueError("vbench: only clips that a run generates have prompts to be named by; leave it out")


def dataset_folders(data: Sequence[str] | None) -> dict[str, Path]:
    """The datasets of `data=`, by the names of their folders."""
    folders = [Path(folder) for folder in data or ()]
    named = {storage.called(folder): folder for folder in folders}
    if len(named) != len(folders) or not folders:
        raise ValueError(
            f"data={[str(folder) for folder in folders]}: scores are named by the datasets' folders, which must have names of their own"
        )
    return named


def score_dataset(
    vae: Any, hashes: Mapping[str, str], folder: Path, settings: EvaluationSettings, bench: Bench
) -> tuple[dict[str, float], list[dict[str, Any]], Clips, Clips, list[str], str]:
    """The figures of one dataset or folder, a row for each clip, the clips of both sides, the cautions, and a hash of the originals."""
    from sora.evaluation.files import policy_of
    from sora.evaluation.videos.clips import take
    from sora.evaluation.videos.made import FittedVideos, MadeVideos, whole
    from sora.evaluation.videos.sets import open_videos

    videos = open_videos(folder, split=settings.split, caption=settings.caption, sets=settings.sets, selection=settings.selection)
    bench.share.tell(videos.lines())
    n = min(USUAL_N if settings.n is None else settings.n, len(videos))
    originals = FittedVideos(take(videos, policy_of(settings, "real"), n=n, seed=settings.seed, named="real"), vae.stride)
    real = whole(originals)
    copies = [Copy("", real.frames(k), real.shape(k).height, real.shape(k).width, real.shape(k).fps) for k in range(len(real))]
    keys = [storage.text_hash(json.dumps([real.key(number), dict(hashes)])) for number in range(len(real))]
    scoring.check_sets(bench, len(real), sets=settings.trajectories)
    made = MadeVideos(copies, [bench.output / "lossless" / f"{key[:32]}.mp4" for key in keys])
    rows = reconstruct(vae, real, made, settings, bench)
    figures = {name: _summary(name, [row[name] for row in rows if name in row]) for name in _names(rows)}
    fake, told = whole(made), []
    if bench.compares:
        found, _, told = scoring.compared(bench, scoring.real_set(bench, real), fake, pairs=True)
        figures |= found
    return figures, rows, real, fake, told, originals.clips.taken_sha256()


def reconstruct(vae: Any, real: Clips, made: Any, settings: EvaluationSettings, bench: Bench) -> list[dict[str, Any]]:
    """A row of scores for each clip. Writes the first pairs of original and reconstruction, and all reconstructions if distances are
    measured; existing files are not made again."""
    import torch

    from sora.metrics.clips.reconstruction import Reconstruction
    from sora.metrics.local import alone
    from sora.video.files import write

    device = next(vae.parameters()).device
    with bar(bench.share, f"reconstructing {bench.output.name}") as progress:

        def of_clip(number: int) -> dict[str, Any]:
            original = torch.from_numpy(real.read(number))[None]
            if bench.compares and made.paths[number].is_file():
                other = torch.from_numpy(made.read(number, 0, original.shape[1]))[None]
            else:
                other = vae.decode(vae.encode(original.to(device))).cpu()
            metric = alone(Reconstruction())
            metric.update(original, other)
            row = {"key": real.name(number), **dict(zip(SHAPE, original.shape[1:4], strict=True)), **metric.compute()}
            if bench.compares and not made.paths[number].is_file():
                write(made.paths[number], other[0].numpy(), real.shape(number).fps, lossless=True)
            if settings.keep is None or number < settings.keep:
                row["file"] = write_pair(bench.output, number + 1, original[0].numpy(), other[0].numpy(), real.shape(number).fps)
            return row

        return bench.share.rows(len(real), of_clip, progress)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the figures in the rows, in order."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in ("key", *SHAPE, "file")))


def _summary(name: str, values: Sequence[float]) -> float:
    return sum(values) if name in SUMS else sum(values) / len(values)


def write_pair(folder: Path, number: int, original: Any, other: Any, fps: float) -> str:
    """Write a pair as a video, the original on the left, and as strips of frames, the original on top; return the video's name."""
    import numpy as np

    from sora.generation.samples import enlarged, strip, write_png
    from sora.video.files import write

    path = folder / f"{number:04d}.mp4"
    pair = enlarged(np.concatenate([original, other], axis=2))
    write(path, pair[:, : pair.shape[1] // 2 * 2], fps, lossless=False)
    write_png(path.with_suffix(".png"), np.concatenate([strip(original), strip(other)]))
    return path.name


def protocol_of(settings: EvaluationSettings, bench: Bench, about: Any, reals: Any, fakes: Any) -> Any:
    """The protocol: all that the scores depend on except the VAE."""
    from sora.metrics.extractors.features import describe
    from sora.metrics.protocol import Protocol

    setting = bench.extractor.setting
    return Protocol(
        dataset=about,
        real=reals,
        generated={name: {"n": fake["n"], "shapes": fake["shapes"]} for name, fake in fakes.items()},
        prompts=None,
        pixels=setting.pixels(),
        extractor=describe(bench.extractor.network) if bench.reads_extractor else None,
        distances=setting.distances() if bench.compares else None,
        sampling=None,
        measures=MEASURES | measures_protocol(bench.words),
        seed=settings.seed,
    )
