"""Features of clips and distances between two sets of them. Processes share the extraction, and a cache keeps features by content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system.terminal import counted

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from sora.evaluation.videos.clips import Clips
    from sora.metrics.distribution.distribution import VideoDistribution
    from sora.metrics.extractors.features import VideoFeatures
    from sora.system.work_sharing import Share

TRIED = 64  # pixels a side of the grey test clip
KEPT_EVERY = 32  # clips between writes of the cache
FEW = 8  # clips of one shape that it needs for its own distance


@dataclass(frozen=True)
class Setting:
    """How features and distances are computed. size: (height, width) to which clips are resized by `kernel`, with `crop` after a centre
    crop; None keeps their size. The other fields are those of `VideoDistribution`."""

    size: tuple[int, int] | None
    kernel: str
    crop: bool
    quantise: bool
    ddof: int
    bootstrap: int
    permutations: int
    neighbours: int
    trajectories: int
    seed: int

    def pixels(self) -> dict[str, Any]:
        """The protocol's entry on pixels."""
        brought = None if self.size is None else {"size": list(self.size), "kernel": self.kernel, "crop": self.crop}
        return {"brought_to": brought, "quantised": "rounded to 256 values" if self.quantise else "as given"}

    def distances(self) -> dict[str, Any]:
        """The protocol's entry on distances."""
        names = ("ddof", "bootstrap", "permutations", "neighbours", "trajectories")
        return {name: getattr(self, name) for name in names}

    def metric(self, extractor: VideoFeatures) -> VideoDistribution:
        """The metric, without synchronisation, because every process has all features."""
        from sora.metrics.distribution.distribution import VideoDistribution
        from sora.metrics.local import alone

        return alone(
            VideoDistribution(
                extractor=extractor,
                seed=self.seed,
                layout="b t h w c",
                quantise=self.quantise,
                ddof=self.ddof,
                bootstrap=self.bootstrap,
                permutations=self.permutations,
                neighbours=self.neighbours,
            )
        )

    def prepared(self, frames: Any, device: str) -> Tensor:
        """Frames (T, H, W, 3) as they are scored: one video, uint8, or float in [0, 1] if resized values are not rounded."""
        import torch

        from sora.metrics.extractors.pixels import Preparation

        video = torch.from_numpy(frames)[None].to(device)
        if self.size is None or tuple(video.shape[2:4]) == self.size:
            return video
        # In the file's own units, so that a value half way between two is rounded alike everywhere.
        prepare = Preparation(size=self.size, kernel=self.kernel, crop=self.crop, low=0.0, high=255.0)
        sized = prepare(video).permute(0, 2, 3, 4, 1).clamp(0, 255)
        return sized.round().to(torch.uint8) if self.quantise else sized / 255

    def pictures(self, frames: ndarray) -> ndarray:
        """Frames (T, H, W, 3) for scores of single clips: resized in the same way, always rounded to uint8."""
        if self.size is None:
            return frames
        return replace(self, quantise=True).prepared(frames, "cpu")[0].numpy()


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Extractor:
    """An extractor with its setting, the folder of its cache, and the processes that share the work."""

    network: VideoFeatures
    setting: Setting
    cache: Path
    share: Share
    device: str

    def features(self, clips: Clips, *, real: bool, progress: Progress) -> Tensor:
        """The features (n, d) in the order of the clips, on every process. Each clip is extracted alone, so that it does not depend on
        others."""
        from sora.metrics.extractors.features import describe
        from sora.metrics.feature_cache import FeatureCache

        about = {"extractor": describe(self.network), **self.setting.pixels()}
        cache = FeatureCache(self.cache, about=about, dimension=self.network.dimension)
        cache.refresh()
        keys = [clips.key(number) for number in range(len(clips))]
        # All evaluations of a run share one cache, and another may add to it between the reads of two processes.
        missing = self.share.of_first([number for number, key in enumerate(keys) if key not in cache])
        metric, mine = self.setting.metric(self.network), self.share.mine(len(missing))
        for done, place in enumerate(mine, 1):
            number = missing[place]
            try:
                found, _ = metric.extract(self.setting.prepared(clips.read(number), self.device), real)
            except ValueError as error:
                raise ValueError(f"{clips.name(number)} of {clips.videos.place}: {error}") from error
            cache.put(keys[number], found[0])
            if cache.waiting >= KEPT_EVERY:
                cache.flush()
            progress(done, len(mine))
        cache.flush()
        self.share.together()
        cache.refresh()
        return cache.get(keys)


def tried(network: VideoFeatures, device: str) -> None:
    """Run the extractor on a grey clip, so that weights that do not fit are reported before a video is read. Raises ValueError."""
    import torch

    if isinstance(network, torch.nn.Module):
        return  # it creates its weights and reads none
    frames = max(network.minimum_frames, network.settings.get("frames") or 1)
    clip = torch.full((1, frames, TRIED, TRIED, 3), 128, dtype=torch.uint8, device=device)
    try:
        found = network(clip)
    except ValueError as error:
        raise ValueError(f"extractor {network.name}: {error}") from error
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:  # a file with somebody's program may raise anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"extractor {network.name} does not run on a clip of {counted(frames, 'frame')}, other weights? {said}") from error
    if found.shape != (1, network.dimension) or not torch.isfinite(found).all():
        told = f"features of shape {tuple(found.shape)}" if found.shape != (1, network.dimension) else "features that are not finite"
        raise ValueError(f"extractor {network.name} gives {told} for one clip, and {network.dimension} numbers are wanted: other weights?")


Shapes = Sequence[tuple[int, int, int]]
Videos = tuple[Sequence[str], Sequence[str]]  # identifiers of the videos of the real clips, and of the scored ones


def averaged(sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of several sets as one: the mean of those that all sets have; over_floor from these means; for p, twice the mean, at most
    1, which is a valid p value for any dependence of the sets (Vovk and Wang 2020)."""
    if len(sets) == 1:
        return dict(sets[0])
    found = {name: sum(each[name] for each in sets) / len(sets) for name in sets[0] if all(name in each for each in sets)}
    for name, value in found.items():
        if name.endswith(("/p", "_p")):
            found[name] = min(1.0, 2 * value)
        elif name.endswith("over_floor") and found[name.removesuffix("over_floor") + "floor"] > 0:
            found[name] = found[name[: -len("_over_floor")]] / found[name.removesuffix("over_floor") + "floor"]
    return found


def shapes_of(clips: Clips, setting: Setting) -> Shapes:
    """The (frames, height, width) of each clip as it is scored."""
    found = []
    for number in range(len(clips)):
        shape = clips.shape(number)
        found.append((clips.frames(number), *(setting.size or (shape.height, shape.width))))
    return found


def distances(
    real: Tensor,
    real_shapes: Shapes,
    fake: Tensor,
    fake_shapes: Shapes,
    *,
    network: VideoFeatures,
    setting: Setting,
    videos: Videos | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All figures over whole sets of features (n, d), under full and short names, and a row for each shape with enough clips on both sides.

    videos: the identifiers of both sides' videos, if a video has several windows: intervals and floors are then over videos. Clips of
    several shapes share one distance, named `@mixed`; both sets should then have the same mixture.
    """
    asked, setting = setting, setting if videos is None else replace(setting, bootstrap=0, permutations=0)
    whole, kinds = setting.metric(network), sorted({*real_shapes, *fake_shapes})
    alone = kinds[0] if len(kinds) == 1 else None
    whole.update(real, real=True, shape=alone)
    whole.update(fake, real=False, shape=alone)
    rows = []
    for shape in kinds if alone is None else ():
        ours, theirs = _of_shape(real, real_shapes, shape), _of_shape(fake, fake_shapes, shape)
        if min(len(ours), len(theirs)) >= FEW:
            one = setting.metric(network)
            one.update(ours, real=True, shape=shape)
            one.update(theirs, real=False, shape=shape)
            rows.append({"frames": shape[0], "height": shape[1], "width": shape[2], **one.compute()})
    found = whole.compute()
    if videos is not None:
        found = of_videos(found, real, fake, videos, key=whole.key, setting=asked)
    return {**found, **shortened(found, whole.key)}, rows


def of_videos(found: Mapping[str, float], real: Tensor, fake: Tensor, videos: Videos, *, key: str, setting: Setting) -> dict[str, float]:
    """The figures, with the interval, floor and p of a Fréchet distance over videos instead of clips, and the number of videos. Figures
    that need independent clips (splits, the extrapolation) are left out."""
    from sora.metrics.distribution.clustered import clustered_floor, clustered_interval, numbered

    told = f"frechet/{key}"
    kept = {name: value for name, value in found.items() if not name.startswith(f"{told}/") and not name.endswith("/p")}
    numbers = [numbered(side) for side in videos]
    counts = [len(set(side)) for side in videos]
    kept |= {f"n_real/{key}/videos": float(counts[0]), f"n_fake/{key}/videos": float(counts[1])}
    sides, draws = (real, numbers[0], fake, numbers[1]), {"seed": setting.seed, "ddof": setting.ddof}
    if setting.permutations and min(counts) > 1:
        floor, p = clustered_floor(*sides, repeats=setting.permutations, **draws)
        kept |= {f"{told}/floor": floor, f"{told}/debiased": kept[told] - floor, f"{told}/p": p}
        kept |= {f"{told}/over_floor": kept[told] / floor} if floor > 0 else {}
    if setting.bootstrap and min(counts) > 1:
        kept[f"{told}/low"], kept[f"{told}/high"] = clustered_interval(*sides, repeats=setting.bootstrap, **draws)
    return kept


def _of_shape(features: Tensor, shapes: Shapes, wanted: tuple[int, int, int]) -> Tensor:
    import torch

    return features[torch.tensor([shape == wanted for shape in shapes], dtype=torch.bool)]


def shortened(found: Mapping[str, float], key: str) -> dict[str, float]:
    """Replace `frechet/rand3d-v1@17f/floor` by `frechet_floor`, for tables of one extractor."""
    return {name.replace(f"/{key}", "").replace("/", "_"): value for name, value in found.items()}
