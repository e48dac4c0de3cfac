"""Score a run: generated videos against prompts and held-out clips, or a VAE's reconstructions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.configs.compose import Composed
    from sora.configs.load import LoadedDiffusion
    from sora.data.index import Index
    from sora.generation.generator import Request

EXAMPLES = (
    "sora evaluate checkpoint=outputs/dit data=data/world n=256",
    "sora evaluate checkpoint=outputs/dit data=data/world metrics=[frechet,kvd] step=2000 guidance=none",
    "sora evaluate checkpoint=outputs/vae data=[data/world,data/real]",
)
METRICS = ("adherence", "frechet", "kvd")
WORLD = "sora.data.sources.WorldSource"


@dataclass(frozen=True)
class Target:
    """What to generate, and the `Facts` it must show; None where they cannot be checked."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float
    facts: Any


def main(composed: Composed) -> None:
    """Evaluate what the checkpoint holds, write `scores.json` and the clips, and print the figures."""
    from sora.configs.load import run_kind

    config = composed.config
    scores = KINDS[run_kind(Path(config.checkpoint))](config)
    width = max(len(name) for name in scores["figures"])
    for name, value in scores["figures"].items():
        print(f"  {name:<{width}}  {value:.5g}")


# ---- diffusion


def evaluate_diffusion(config: DictConfig) -> dict[str, Any]:
    """Generate for held-out prompts, and score adherence and distribution distances."""
    from sora.configs.build import build
    from sora.configs.load import load_diffusion
    from sora.data.index import Index
    from sora.sample import make_generator, progress_bar

    wanted = chosen_metrics(config.metrics)
    folders = dataset_folders(config.data)
    if len(folders) != 1:
        raise ValueError(f"data={list(folders.values())}: a diffusion run is scored on one dataset at a time")
    index = Index.open(next(iter(folders.values())), config.split)
    targets = plan_targets(index, n=config.n, split=config.split, caption=config.caption, seed=config.seed)
    if "adherence" in wanted and all(target.facts is None for target in targets):
        raise ValueError("adherence is measured on prompts of the built-in world; leave it out: metrics=[frechet,kvd]")
    if "frechet" in wanted or "kvd" in wanted:
        build(config.extractor).fingerprint  # noqa: B018  a missing weights file is told before hours of generating
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema)
    output = Path(config.output) if config.output else loaded.run / "evaluation" / f"step-{loaded.step:08d}"
    requests = [to_request(target, number, seed=config.seed) for number, target in enumerate(targets)]
    generator = make_generator(loaded, config)
    with progress_bar(f"generating {len(requests)} clips") as progress:
        clips = generator.generate(requests, progress=progress)
    figures: dict[str, float] = {}
    rows = [{"prompt": target.prompt, **shape_of(target), "fps": target.fps} for target in targets]
    if "adherence" in wanted:
        figures |= score_adherence(targets, clips, rows)
    distances: list[dict[str, Any]] = []
    if "frechet" in wanted or "kvd" in wanted:
        found, distances = score_distribution(index, targets, clips, config)
        figures |= {name: value for name, value in found.items() if name.split("/")[0].split("_")[0] in (*wanted, "n")}
    protocol = diffusion_protocol(config, loaded, index, targets)
    floors = {name: value for name, value in figures.items() if name.endswith("floor") and "over" not in name}
    scores = {"kind": "diffusion", "figures": figures, "n": len(targets), "floor": floors, "distances": distances}
    return finish(output, scores, protocol, rows, keep_generated(output, requests, clips, loaded, config))


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"metrics={list(names)}: choose from {', '.join(METRICS)}")
    return tuple(names)


def plan_targets(index: Index, *, n: int, split: str, caption: str, seed: int) -> list[Target]:
    """n prompts with sizes: drawn anew from the built-in world if the dataset is one, else the captions of the split's clips in turn."""
    if n < 2:
        raise ValueError(f"n={n}: scores need at least 2 clips")
    source = index.described["about"].get("config", {}).get("source", {})
    if source.get("_target_") == WORLD:
        return world_targets(source["world"], n=n, split=split, caption=caption, seed=seed)
    targets = []
    for number in range(n):
        row = index.row(number % len(index))
        if not row.captions:
            raise ValueError(f"clip {row.key} of {index.folder} has no caption to prompt with; caption the dataset first")
        text = next((item.text for item in row.captions if item.kind == caption), row.captions[0].text)
        targets.append(Target(text, row.frames, row.height, row.width, row.fps, None))
    return targets


def world_targets(recipe: Mapping[str, Any], *, n: int, split: str, caption: str, seed: int) -> list[Target]:
    """Prompts of the world that a dataset was drawn from, of combinations that its split holds."""
    from sora.configs.build import build
    from sora.data.world import parse

    prompts = build(recipe).prompts(n, split="heldout" if split == "heldout" else "train", seed=seed)
    texts = [prompt.text_short if caption == "short" else prompt.text_dense for prompt in prompts]
    # What the text says is what can be asked for: a short caption leaves facts out.
    return [Target(text, item.frames, item.size[0], item.size[1], item.fps, parse(text)) for text, item in zip(texts, prompts, strict=True)]


def to_request(target: Target, number: int, *, seed: int) -> Request:
    from sora.generation.generator import Request

    return Request(target.prompt, target.frames, target.height, target.width, fps=target.fps, seed=seed, sample=number)


def score_adherence(targets: Sequence[Target], clips: Sequence[Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of clips that show what their prompt says, each with its 95 % interval; each clip's verdicts go into its row."""
    from sora.data.world import PALETTE
    from sora.metrics.adherence import PromptAdherence, judge

    metric = PromptAdherence()
    agreed = judge(
        [clip.numpy() for clip in clips], [target.fps for target in targets], [target.facts for target in targets], palette=PALETTE
    )
    metric.update(agreed)
    asked: Counter[str] = Counter()
    for verdicts, row in zip(agreed, rows, strict=True):
        row["adherence"] = verdicts
        asked.update(name for name, verdict in verdicts.items() if verdict is not None)
    shares = metric.compute()
    asked["all"] = int(shares.pop("n"))
    figures = {f"adherence_{name}": share for name, share in shares.items()}
    for name, share in shares.items():
        low, high = wilson(share, asked[name])
        figures |= {f"adherence_{name}_low": low, f"adherence_{name}_high": high}
    return {**figures, "adherence_n": float(asked["all"])}


def wilson(share: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927); within [0, 1] for any share."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def score_distribution(
    index: Index, targets: Sequence[Target], clips: Sequence[Any], config: DictConfig
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Distances to the split's clips of the shapes that were generated: over all of them, and for each shape with enough clips.

    The extractor pools over time and space, so clips of several shapes may share one distance when both sets draw from the same mixture.
    """
    import torch

    from sora.configs.build import build
    from sora.metrics.distribution import VideoDistribution

    extractor = build(config.extractor)
    shapes = sorted({(target.frames, target.height, target.width) for target in targets})
    fake: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for clip in clips:
        fake[tuple(clip.shape[:3])].append(extractor(clip[None]))
    real: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for number in range(len(index)):
        shape = (int(index.frames[number]), int(index.heights[number]), int(index.widths[number]))
        if shape in fake:
            real[shape].append(extractor(torch.from_numpy(read_clip(index, number))[None]))
    if sum(map(len, real.values())) < 2:
        raise ValueError(f"split {config.split} of {index.folder} has no clips of the sizes that were generated; choose another split=")
    whole = VideoDistribution(extractor=extractor, seed=config.seed)
    rows = []
    for shape in shapes:
        if real[shape]:
            alone = shape if len(shapes) == 1 else None
            whole.update(torch.cat(real[shape]), real=True, shape=alone)
            whole.update(torch.cat(fake[shape]), real=False, shape=alone)
        if len(shapes) > 1 and len(real[shape]) >= 8 and len(fake[shape]) >= 8:
            one = VideoDistribution(extractor=extractor, seed=config.seed)
            one.update(torch.cat(real[shape]), real=True, shape=shape)
            one.update(torch.cat(fake[shape]), real=False, shape=shape)
            rows.append({"frames": shape[0], "height": shape[1], "width": shape[2], **one.compute()})
    found = whole.compute()
    short = {name.replace(f"/{key_of(found)}", "").replace("/", "_"): value for name, value in found.items()}
    return {**found, **short}, rows


def key_of(found: Mapping[str, float]) -> str:
    """The part of a distance's name that says what it is over, such as rand3d-v1@17f."""
    return next(name for name in found if name.startswith("kvd/")).partition("/")[2]


def read_clip(index: Index, number: int) -> Any:
    """The frames of a clip of a dataset, uint8 (T, H, W, 3)."""
    from sora.data.video import read

    row = index.member(number)
    return read(index.read_member(row), name=f"{row.key} of {row.shard}").frames


def diffusion_protocol(config: DictConfig, loaded: LoadedDiffusion, index: Index, targets: Sequence[Target]) -> dict[str, Any]:
    """All that the scores depend on."""
    from omegaconf import OmegaConf

    from sora.configs.build import build
    from sora.metrics.extractors.features import describe
    from sora.training.run import code_version

    extractor = build(config.extractor)
    shapes = Counter(f"{target.frames}x{target.height}x{target.width}@{target.fps:g}" for target in targets)
    return {
        "dataset": {"fingerprint": index.dataset_fingerprint, "split": config.split, "clips": len(index)},
        "prompts": {"caption": config.caption, "n": len(targets), "shapes": dict(sorted(shapes.items()))},
        "extractor": {**describe(extractor), "pixels": "uint8, decoded from the shards; generated clips as decoded"},
        "covariance": {"ddof": 1},
        "sampling": {
            "sampler": OmegaConf.to_container(config.sampler),
            "guidance": OmegaConf.to_container(config.guidance),
            "steps": config.steps,
            "shift": config.shift,
            "first": config.first,
            "seed": config.seed,
        },
        "checkpoint": {"step": loaded.step, "ema": config.ema, "hashes": loaded.hashes},
        "code": code_version(),
    }


def keep_generated(
    output: Path, requests: Sequence[Request], clips: Sequence[Any], loaded: LoadedDiffusion, config: DictConfig
) -> list[str]:
    """Write the clips as `sora sample` does; their paths, relative to the output."""
    from sora.sample import describe, write_samples

    count = len(clips) if config.keep is None else config.keep
    paths = write_samples(output / "clips", requests[:count], clips[:count], about=describe(loaded, config)) if count else []
    return [str(path.relative_to(output)) for path in paths]


# ---- VAE


def evaluate_vae(config: DictConfig) -> dict[str, Any]:
    """Reconstruct held-out clips of each dataset, and measure PSNR and SSIM."""
    from sora.configs.load import load_vae
    from sora.data.index import Index
    from sora.sample import choose_device
    from sora.training.run import code_version

    loaded = load_vae(Path(config.checkpoint), config.step, ema=config.ema)
    vae = loaded.vae.to(choose_device(config.device))
    output = (
        Path(config.output)
        if config.output
        else Path(config.checkpoint) / "evaluation" / (f"step-{loaded.step:08d}" if loaded.step else "vae")
    )
    figures, rows, datasets, paths = {}, [], {}, []
    for name, folder in dataset_folders(config.data).items():
        index = Index.open(folder, config.split)
        found, clip_rows = reconstruct(vae, index, config, folder=output / "reconstructions" / name)
        figures |= {f"{name}_vae_{key}": value for key, value in found.items()}
        rows += [{"dataset": name, **row} for row in clip_rows]
        paths += [str((output / "reconstructions" / name / row["file"]).relative_to(output)) for row in clip_rows if "file" in row]
        datasets[name] = {"fingerprint": index.dataset_fingerprint, "split": config.split, "clips": len(clip_rows)}
    protocol = {
        "datasets": datasets,
        "psnr": "uint8 RGB, mean over frames of a clip, then over clips",
        "ssim": "gaussian 11x11 sigma 1.5, valid windows, per channel, C1=0.01^2, C2=0.03^2",
        "crop": "frames to 1 + a multiple of the time stride, sides to multiples of the strides, from the start",
        "latents": "posterior means",
        "vae": loaded.hashes,
        "code": code_version(),
    }
    return finish(output, {"kind": "vae", "figures": figures, "n": len(rows), "floor": {}}, protocol, rows, paths)


def vae_home(folder: Path) -> Path:
    """Where scores of a VAE go: into its run, whether the run or the artefact within was named; never into the artefact."""
    run = folder if (folder / "run.json").is_file() else folder.parent
    return run / "evaluation"


def reconstruct(vae: Any, index: Index, config: DictConfig, *, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Means over up to n clips of a split, spread evenly over it, and a row for each clip; writes original beside reconstruction."""
    import numpy as np
    import torch

    from sora.metrics.reconstruction import Reconstruction, psnr, ssim
    from sora.sample import progress_bar

    numbers = np.unique(np.linspace(0, len(index) - 1, min(config.n, len(index))).round().astype(int)).tolist()
    metric, rows = Reconstruction(), []
    device = next(vae.parameters()).device
    with progress_bar(f"reconstructing {folder.name}") as progress:
        for done, number in enumerate(numbers, 1):
            original = torch.from_numpy(fit(read_clip(index, number), vae.stride))[None]
            other = vae.decode(vae.encode(original.to(device))).cpu()
            metric.update(original, other)
            row = {"key": index.member(number).key, "frames": original.shape[1], "psnr": float(psnr(original, other))}
            if min(original.shape[2:4]) >= 11:
                row["ssim"] = float(ssim(original, other))
            if config.keep is None or len(rows) < config.keep:
                row["file"] = write_pair(folder, done, original[0].numpy(), other[0].numpy(), float(index.fps[number]))
            rows.append(row)
            progress(done, len(numbers))
    return metric.compute(), rows


def fit(frames: Any, stride: tuple[int, int, int]) -> Any:
    """The longest and largest part of a clip, from its start, that a VAE of this stride takes."""
    time, rows, columns = stride
    count, height, width = frames.shape[:3]
    if height < rows or width < columns:
        raise ValueError(f"frames of {height}x{width} are smaller than the VAE's blocks of {rows}x{columns}")
    return frames[: 1 + (count - 1) // time * time, : height // rows * rows, : width // columns * columns].copy()


def write_pair(folder: Path, number: int, original: Any, other: Any, fps: float) -> str:
    """Original left, reconstruction right, as a video; and as strips, one above the other. Returns the video's name."""
    import numpy as np

    from sora.data.video import write
    from sora.sample import enlarged, strip, write_png

    path = folder / f"{number:04d}.mp4"
    pair = enlarged(np.concatenate([original, other], axis=2))
    write(path, pair[:, : pair.shape[1] // 2 * 2], fps, lossless=False)
    write_png(path.with_suffix(".png"), np.concatenate([strip(original), strip(other)]))
    return path.name


# ---- both


def dataset_folders(data: Any) -> dict[str, Path]:
    """The datasets of `data=`, by the names of their folders."""
    folders = [Path(data)] if isinstance(data, str | Path) else [Path(folder) for folder in data]
    named = {folder.name: folder for folder in folders}
    if len(named) != len(folders) or not folders:
        raise ValueError(
            f"data={[str(folder) for folder in folders]}: scores are named by the datasets' folders, which must have names of their own"
        )
    return named


def shape_of(target: Target) -> dict[str, int]:
    return {"frames": target.frames, "height": target.height, "width": target.width}


def finish(output: Path, scores: dict[str, Any], protocol: dict[str, Any], rows: list[dict[str, Any]], clips: list[str]) -> dict[str, Any]:
    """Write `scores.json`: figures, a row for each clip, and the protocol; scores of one protocol hash may be compared."""
    from sora import storage

    comparable = {key: value for key, value in protocol.items() if key not in ("code", "checkpoint", "vae")}
    identity = storage.text_hash(json.dumps(comparable, sort_keys=True))
    scores = {**scores, "protocol_sha256": identity, "protocol": protocol, "rows": rows, "clips": clips}
    storage.write_json(output / "scores.json", scores)
    print(f"the scores are in {output / 'scores.json'}, over {scores['n']} clips:")
    return scores


KINDS = {"diffusion": evaluate_diffusion, "vae": evaluate_vae}

if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("evaluate"))
