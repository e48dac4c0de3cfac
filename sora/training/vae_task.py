"""Training a VAE: frames in, the terms of the objective out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sora.system import draws
from sora.training.module import Loss
from sora.vae.vae import VideoVAE


@runtime_checkable
class Frames(Protocol):
    """A batch of crops of one shape, as the loader gives it."""

    @property
    def frames(self) -> UInt8[Tensor, "B T H W 3"]: ...
    @property
    def sample_ids(self) -> Sequence[int]: ...
    @property
    def epochs(self) -> Sequence[int]: ...


@runtime_checkable
class VAEObjective(Protocol):
    """Returns the VAE's loss terms by name, with their weighted sum as "total"; each is a mean over the batch."""

    def __call__(self, vae: VideoVAE, frames: Tensor, noise: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class PreparedFrames:
    """Frames and the noise of the posterior, on the device."""

    frames: UInt8[Tensor, "B T H W 3"]
    noise: Float[Tensor, "B C t h w"]
    sample_ids: tuple[int, ...]
    tokens: int

    @property
    def samples(self) -> int:
        return len(self.sample_ids)

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def count(self) -> Tensor:
        return torch.tensor(float(self.samples), device=self.frames.device)


class VaeTask(nn.Module):
    """A VAE with its objective. The noise of the posterior is a pure function of (seed, epoch, sample id); a token is a latent position."""

    ahead: ClassVar[None] = None  # see `DiffusionTask.ahead`: latents have about 1/200 of the numbers of pixels, so drawing is fast

    def __init__(self, *, vae: VideoVAE, objective: VAEObjective, seed: int) -> None:
        super().__init__()
        self.vae = vae
        self.objective = objective
        self.seed = seed

    def prepare(self, batch: Frames | Sequence[Frames], device: torch.device) -> list[PreparedFrames]:
        return [self._prepare(part, device) for part in (batch if isinstance(batch, Sequence) else [batch])]

    def _prepare(self, batch: Frames, device: torch.device) -> PreparedFrames:
        count, frames, height, width, _ = batch.frames.shape
        shape = (self.vae.latent_channels, *self.vae.latent_shape(frames, height, width))
        noise = [
            draws.normal("posterior", shape, seed=self.seed, epoch=epoch, sample=sample)
            for sample, epoch in zip(batch.sample_ids, batch.epochs, strict=True)
        ]
        return PreparedFrames(
            frames=batch.frames.to(device, non_blocking=True),
            noise=torch.stack(noise).to(device, non_blocking=True),
            sample_ids=tuple(batch.sample_ids),
            tokens=count * shape[1] * shape[2] * shape[3],
        )

    def forward(self, prepared: PreparedFrames) -> Loss:
        terms = self.objective(self.vae, prepared.frames, prepared.noise)
        count = prepared.count
        return Loss(
            total=terms["total"] * count,
            parts={name: (value.detach() * count, count) for name, value in terms.items() if name != "total"},
            by_sample=lambda: self._by_sample(prepared),
        )

    @torch.no_grad()
    def _by_sample(self, prepared: PreparedFrames) -> Float[Tensor, "B"]:
        each = zip(prepared.frames.split(1), prepared.noise.split(1), strict=True)
        terms: list[Mapping[str, Tensor]] = [self.objective(self.vae, frames, noise) for frames, noise in each]
        return torch.stack([term["total"] for term in terms])
