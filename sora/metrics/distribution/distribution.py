"""Distances between the distributions of real and generated videos as a torchmetrics class, all scores from one pass of one extractor.

`compute()` gathers over ranks, so every rank must call it: in a hook that runs on rank zero alone it waits for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import EinopsError, rearrange
from jaxtyping import Float
from torch import Tensor

from sora.metrics.distribution.comparison import class_figures, compare_features
from sora.metrics.distribution.frechet import check_features
from sora.metrics.distribution.streamed import StreamedFrechet as StreamedFrechet  # where it stood before
from sora.metrics.extractors.features import VideoFeatures, describe
from sora.metrics.feature_sets import load_features, save_features
from sora.metrics.metric import Figures, TwoSided
from sora.system.terminal import counted

UNKNOWN_FPS = 0


class VideoDistribution(TwoSided):
    """Distances between real and generated videos: update(videos, real=...) with videos of one length, size and frame rate, uint8 or float
    [0, 1]; compute() returns plain numbers.

    Keys name extractor and length, as in `frechet/rand3d-v1@17f`; `compare_features` lists the scores. With the weights that define FVD,
    the distance is also given as `fvd/…`.

    layout: the axes of videos, b t c h w in any order. quantise: round floats to the nearest of 256 values, as in a file; without it the
    keys' protocol says so. ddof: of the covariances. seed: of all draws, which have generators of their own. bootstrap: repeats for the
    interval; permutations: random splits for floors and p values; 0 for none. reset_real_features: whether reset() forgets the real set.
    settings: torchmetrics' own. Features are stored in float32, or in the type of set_dtype(). The extractor is held outside the state: no
    checkpoint has its weights, and precision settings do not reach it.
    """

    real_features: list[Tensor]
    fake_features: list[Tensor]
    clip_shapes: list[Tensor]
    exact = ("clip_shapes",)
    feature_network = "extractor"

    def __init__(
        self,
        *,
        extractor: VideoFeatures,
        seed: int = 0,
        reset_real_features: bool = True,
        layout: str = "b t c h w",
        quantise: bool = True,
        ddof: int = 1,
        bootstrap: int = 100,
        permutations: int = 79,
        neighbours: int = 5,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if sorted(layout.split()) != ["b", "c", "h", "t", "w"]:
            raise ValueError(f"layout={layout!r}: name the axes b, t, c, h and w once each, as in 'b t c h w'")
        if ddof not in (0, 1):
            raise ValueError(f"ddof={ddof}: covariances are unbiased (1) or biased (0)")
        # In a tuple, so that no state dict or checkpoint carries the extractor's weights.
        self._held = (extractor,)
        self.seed, self.reset_real_features = seed, reset_real_features
        self.layout, self.quantise = layout, quantise
        self.ddof, self.bootstrap, self.permutations, self.neighbours = ddof, bootstrap, permutations, neighbours
        self._kept = torch.float32  # not torch's default dtype, which a trainer in half precision changes
        for name in ("real_features", "fake_features", "clip_shapes"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def extractor(self) -> VideoFeatures:
        return self._held[0]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(frames, height, width) of all clips; None if only features were given, without their clips' shape."""
        for frames, height, width, _ in self._shapes().tolist():
            return frames, height, width
        return None

    def update(self, videos: Tensor, real: bool, *, shape: tuple[int, int, int] | None = None, fps: float | None = None) -> None:
        """Add clips to one set. videos: uint8 or float [0, 1] in `layout`, or their features (B, D).

        shape: with features, (frames, height, width) of their clips; omitted for clips of several shapes, the same mixture in both sets,
        and keys then say `@mixed`. fps: of the clips; a change raises ValueError, as does any wrong clip, with its number.
        """
        if videos.ndim == 2:
            features = videos
            self._check_features(features, real, self._count(real))
        else:
            features, shape = self.extract(videos, real)
        if shape is not None:
            self._note(shape, fps)
        (self.real_features if real else self.fake_features).append(features.detach().to(self.device, self._kept))

    def extract(self, videos: Tensor, real: bool) -> tuple[Float[Tensor, "B d"], tuple[int, int, int]]:
        """The features of videos and their (frames, height, width), with every check of `update`, without adding them to a set."""
        done = self._count(real)
        prepared = self._checked(videos, real, done)
        with torch.inference_mode():
            features = self.extractor(prepared)
        self._check_features(features, real, done)
        frames, height, width = prepared.shape[1:4]
        return features.clone(), (frames, height, width)  # an inference tensor may not be changed later

    def features(self, real: bool) -> Float[Tensor, "n d"]:
        """All features of one set so far."""
        state = self.real_features if real else self.fake_features
        if isinstance(state, Tensor):  # after a gather over ranks
            return state
        return torch.cat([torch.zeros(0, self.extractor.dimension, dtype=self._kept, device=self.device), *state])

    @property
    def key(self) -> str:
        """The extractor with the hash of its weights, and the clips' length, for the scores' names."""
        return f"{self.extractor.name}@{'mixed' if self.shape is None else f'{self.shape[0]}f'}"

    def compute(self) -> dict[str, float]:
        """The scores; call it on all ranks. Raises ValueError for fewer than two clips in either set, or if ranks saw different shapes."""
        self._one_shape()
        real, fake = self.features(True), self.features(False)
        check_features(real, fake)
        found = compare_features(
            real,
            fake,
            key=self.key,
            ddof=self.ddof,
            seed=self.seed,
            bootstrap=self.bootstrap,
            permutations=self.permutations,
            neighbours=self.neighbours,
        )
        if self.extractor.logits:
            found |= class_figures(fake, key=self.key, seed=self.seed)
        if self.extractor.canonical:
            found[f"fvd/{self.key}"] = found[f"frechet/{self.key}"]
        return found

    def protocol(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the features of the real set depend on. about: identifies the data: a fingerprint, a split, a stride."""
        frames, height, width, rate = self._shapes()[0].tolist() if len(self._shapes()) else [None] * 4
        clips = {"frames": frames, "height": height, "width": width, "fps": rate / 1000 if rate else None}
        pixels = "rounded to 256 values" if self.quantise else "as given"
        return {"extractor": describe(self.extractor), "clips": clips, "pixels": pixels, "data": dict(about)}

    def save_real(self, path: Path, *, about: Mapping[str, Any]) -> None:
        """Save the real set's features to a safetensors file. With several ranks: inside `with metric.sync_context():`, on one of them."""
        save_features(Path(path), self.features(True), self.protocol(about))

    def load_real(self, path: Path, *, about: Mapping[str, Any], shape: tuple[int, int, int] | None, fps: float | None = None) -> None:
        """Load the real set from a file instead of updates. Raises ValueError with the differing fields unless its protocol is that of this
        extractor, these clips and `about`. Call it on one rank only, or the set counts once per rank."""
        if self._count(True):
            raise ValueError(f"{self._count(True)} real clips were given already; features from {path} would mix with them")
        if shape is not None:
            self._note(shape, fps)
        self.real_features.append(load_features(Path(path), self.protocol(about)).features.to(self.device, self._kept))
        self._update_count += 1
        self._computed = None

    def set_dtype(self, dst_type: str | torch.dtype) -> VideoDistribution:
        super().set_dtype(dst_type)
        self._kept = self.dtype
        return self

    def drawn(self, figures: Figures) -> list[str]:
        """The names of the Fréchet distance, its interval and its floor, which share a unit."""
        return [f"frechet/{self.key}{part}" for part in ("", "/low", "/high", "/floor") if f"frechet/{self.key}{part}" in figures]

    def reset(self) -> None:
        kept = None if self.reset_real_features else (list(self.real_features), list(self.clip_shapes))
        super().reset()
        if kept is not None:
            self.real_features, self.clip_shapes = kept

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A rank without updates must bring (0, D): torchmetrics would send a tensor of one axis and the ranks would hang or abort.
        for name, width in (("real_features", self.extractor.dimension), ("fake_features", self.extractor.dimension), ("clip_shapes", 4)):
            if not getattr(self, name):
                kind = torch.int64 if name == "clip_shapes" else self._kept
                setattr(self, name, [torch.zeros(0, width, dtype=kind, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def _count(self, real: bool) -> int:
        return sum(len(part) for part in (self.real_features if real else self.fake_features))

    def _shapes(self) -> Tensor:
        state = self.clip_shapes
        return state if isinstance(state, Tensor) else torch.cat([torch.zeros(0, 4, dtype=torch.int64, device=self.device), *state])

    def _one_shape(self) -> None:
        different = torch.unique(self._shapes(), dim=0).tolist()
        if len(different) > 1:
            raise ValueError(f"ranks saw clips of different (frames, height, width, fps/1000): {different}; one distance compares one")

    def _note(self, shape: tuple[int, ...], fps: float | None) -> None:
        row = [*shape, UNKNOWN_FPS if fps is None else round(fps * 1000)]
        known = self._shapes().tolist()
        if known and known[0][:3] != row[:3]:
            raise ValueError(
                f"videos of {shape} (frames, height, width) among videos of {tuple(known[0][:3])}; "
                "one distance compares one length and size"
            )
        if known and known[0][3] != row[3]:
            rates = [f"{rate / 1000:g}" if rate else "unknown" for rate in (row[3], known[0][3])]
            raise ValueError(f"videos of {rates[0]} fps among videos of {rates[1]} fps; bring both sets to one frame rate first")
        if not known:
            self.clip_shapes.append(torch.tensor([row], dtype=torch.int64, device=self.device))

    def _check_features(self, features: Tensor, real: bool, done: int) -> None:
        if features.ndim != 2 or features.shape[1] != self.extractor.dimension:
            raise ValueError(f"features of shape {tuple(features.shape)}; {self.extractor.name} gives {self.extractor.dimension} a clip")
        bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"features of {_told(bad, real, done)} are not finite")

    def _checked(self, videos: Tensor, real: bool, done: int) -> Tensor:
        """Videos as uint8 or float [0, 1], B T H W 3; ValueError for wrong ones."""
        wanted = f"give uint8, or float between 0 and 1, with axes {self.layout}, 3 channels"
        if videos.dtype != torch.uint8 and not videos.is_floating_point():
            raise ValueError(f"videos are {videos.dtype}; {wanted}")
        try:
            videos = rearrange(videos, f"{self.layout} -> b t h w c")
        except EinopsError:
            raise ValueError(f"videos have shape {tuple(videos.shape)}; {wanted}") from None
        if videos.shape[-1] != 3:
            raise ValueError(f"videos have {videos.shape[-1]} channels if their axes are {self.layout}: swapped axes? {wanted}")
        if not min(videos.shape):
            raise ValueError(f"videos of shape {tuple(videos.shape)} hold nothing; {wanted}")
        if videos.shape[1] < self.extractor.minimum_frames:
            raise ValueError(
                f"videos of {counted(videos.shape[1], 'frame')}; {self.extractor.name} needs at least {self.extractor.minimum_frames}, "
                "and repeats none"
            )
        return videos if videos.dtype == torch.uint8 else self._in_range(videos, real, done)

    def _in_range(self, videos: Tensor, real: bool, done: int) -> Tensor:
        flat = videos.flatten(1)
        bad = (~torch.isfinite(flat).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{_told(bad, real, done)} hold values that are not numbers; none is put in their place")
        low, high = flat.amin(dim=1), flat.amax(dim=1)
        bad = ((low < -1e-3) | (high > 1 + 1e-3)).nonzero().flatten().tolist()
        if bad:
            lowest, highest = float(low.min()), float(high.max())
            hint = "divide by 255 or give uint8" if highest > 2 else "if they are in [-1, 1], give (videos + 1) / 2"
            raise ValueError(f"{_told(bad, real, done)} lie in [{lowest:.4g}, {highest:.4g}], floats must lie in [0, 1]; {hint}")
        videos = videos.clamp(0, 1)
        return (videos * 255).round().to(torch.uint8) if self.quantise else videos.float()


def _told(clips: list[int], real: bool, done: int) -> str:
    """A text such as `clips 3, 5 of the batch (number 13, 15 of the real set)`."""
    numbers = ", ".join(str(number) for number in clips[:5])
    overall = ", ".join(str(done + number) for number in clips[:5])
    return (
        f"clips {numbers}{' and more' if len(clips) > 5 else ''} of this batch (number {overall} of the {'real' if real else 'fake'} set)"
    )
