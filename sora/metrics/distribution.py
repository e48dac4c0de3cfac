"""Distances between the distributions of real and generated videos, all from one pass of one feature extractor, each with its floor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from sora.metrics.frechet import check_features, frechet_distance, frechet_floor, frechet_split
from sora.metrics.kernel import kernel_distance
from sora.metrics.rand3d import VideoFeatures


class VideoDistribution(Metric):
    """Fréchet and kernel distances. update(videos, real=...) with uint8 (B, T, H, W, 3); all videos of one length and size.

    compute() gives plain numbers under keys that name extractor and length, such as `frechet/rand3d-v1@17f`: the distance, its `floor`
    (what two samples of these sizes from the real distribution score on average), `over_floor` (their ratio), `debiased` (the
    difference), `split` (between halves of the real set), and `kvd/...`.
    """

    real_features: list[Tensor]
    fake_features: list[Tensor]
    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    feature_network = "extractor"

    def __init__(self, *, extractor: VideoFeatures, seed: int = 0, reset_real_features: bool = True) -> None:
        super().__init__()
        # In a tuple, so that no state dict or checkpoint carries the extractor's weights.
        self._held = (extractor,)
        self.seed = seed
        self.reset_real_features = reset_real_features
        self.shape: tuple[int, ...] | None = None
        for name in ("real_features", "fake_features"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def extractor(self) -> VideoFeatures:
        return self._held[0]

    def update(self, videos: Tensor, real: bool) -> None:
        """videos: uint8 (B, T, H, W, 3), or their features (B, D) where those were extracted before.

        If only features come, keys say `@mixed`: clips of several lengths and sizes, the same mixture in both sets.
        """
        features = videos if videos.ndim == 2 else self.extractor(self._checked(videos))
        if features.shape[1] != self.extractor.dimension:
            raise ValueError(f"features of shape {tuple(features.shape)}; {self.extractor.name} gives {self.extractor.dimension} a clip")
        (self.real_features if real else self.fake_features).append(features)

    def features(self, real: bool) -> Float[Tensor, "n d"]:
        """All features of one set so far."""
        state = self.real_features if real else self.fake_features
        if isinstance(state, Tensor):  # after ranks were brought together
            return state
        return torch.cat([torch.zeros(0, self.extractor.dimension, device=self.device), *state])

    def compute(self) -> dict[str, float]:
        real, fake = self.features(True), self.features(False)
        check_features(real, fake)
        key = f"{self.extractor.name}@{'mixed' if self.shape is None else f'{self.shape[0]}f'}"
        distance, floor = frechet_distance(real, fake), frechet_floor(real, len(real), len(fake))
        found = {
            f"frechet/{key}": distance,
            f"frechet/{key}/floor": floor,
            f"frechet/{key}/debiased": distance - floor,
            f"kvd/{key}": kernel_distance(real, fake),
            f"n_real/{key}": float(len(real)),
            f"n_fake/{key}": float(len(fake)),
        }
        if floor > 0:
            found[f"frechet/{key}/over_floor"] = distance / floor
        if len(real) >= 4:
            found[f"frechet/{key}/split"] = frechet_split(real, seed=self.seed)
        return found

    def reset(self) -> None:
        kept = None if self.reset_real_features else list(self.real_features)
        super().reset()
        if kept is None:
            self.shape = None
        else:
            self.real_features = kept

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A rank without updates must bring (0, D): torchmetrics would send a tensor of one axis and the ranks would hang or abort.
        for name in ("real_features", "fake_features"):
            if not getattr(self, name):
                setattr(self, name, [torch.zeros(0, self.extractor.dimension, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def _checked(self, videos: Tensor) -> Tensor:
        if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
            raise ValueError(f"videos are {videos.dtype} of shape {tuple(videos.shape)}; give uint8 (batch, frames, height, width, 3)")
        shape = tuple(videos.shape[1:4])
        if shape[0] < self.extractor.minimum_frames:
            raise ValueError(f"videos of {shape[0]} frames; {self.extractor.name} needs at least {self.extractor.minimum_frames}")
        if self.shape is not None and shape != self.shape:
            raise ValueError(
                f"videos of {shape} (frames, height, width) among videos of {self.shape}; one distance compares one length and size"
            )
        self.shape = shape
        return videos
