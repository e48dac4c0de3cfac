"""Training the denoising network: packs of latent patches in, the objective's loss of each token out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.diffusion.objective import Noised, Objective, by_level
from sora.dit.flops import TRAINING, Flops
from sora.parallel.context import Slicer
from sora.tokens import Batch, NoiseLevels, PackedTokens, TextTokens
from sora.training.module import Loss


class NoisedBatch(NamedTuple):
    """A pack with its noise and noise levels, on the device on which they were drawn."""

    batch: Batch
    noised: Noised


def drawn(packs: Sequence[Batch], *, objective: Objective, seed: int) -> list[NoisedBatch]:
    """Draw the noise and the noise levels of packs; they are a pure function of the seed and the clips."""
    return [NoisedBatch(pack, objective.noise(pack, seed=seed)) for pack in packs]


@dataclass(frozen=True)
class PreparedPack:
    """A pack with its noise and levels, on the training device.

    flops: floating-point operations of a training step on the whole pack. Where ranks share a pack, patches, noise, `count` and the loss
    cover this rank's tokens only; everything else covers the whole pack.
    """

    batch: Batch
    noised: Noised
    flops: float

    @property
    def count(self) -> Tensor:
        return self.noised.count

    @property
    def samples(self) -> int:
        return len(self.batch.sample_ids)

    @property
    def tokens(self) -> int:
        return self.batch.tokens.real

    @property
    def sample_ids(self) -> Sequence[int]:
        return self.batch.sample_ids


class DiffusionTask(nn.Module):
    """The network, the module that maps a pack's captions to text states, and the objective.

    text: the identity for frozen encoders, whose states are cached; a byte-level encoder is trained together with the network. bins: number
    of bins of the noise level in the log. encode: maps a loaded pack to a `Batch` on the device; None if packs are loaded as batches.
    flops: the FLOPs of the network's forward pass, for the throughput in the log; None to count none.
    """

    def __init__(
        self,
        *,
        dit: nn.Module,
        text: nn.Module,
        objective: Objective,
        seed: int,
        bins: int,
        encode: Callable[[Any, torch.device], Batch] | None,
        flops: Flops | None = None,
    ) -> None:
        super().__init__()
        self.dit = dit
        self.text = text
        self.objective = objective
        self.seed = seed
        self.bins = bins
        self.encode = encode
        self.flops = flops
        self.slicer: Slicer | None = None  # set by the strategy

    @property
    def ahead(self) -> Callable[[Sequence[Batch]], list[NoisedBatch]] | None:
        """Draws the noise of later packs in the loader while earlier ones train; None if packs are first encoded on the device."""
        return partial(drawn, objective=self.objective, seed=self.seed) if self.encode is None else None

    def prepare(self, batch: Sequence[Any], device: torch.device) -> list[PreparedPack]:
        """Move packs to the device, with noise that is drawn where the pack lies, so that it is the same on every device."""
        packs = batch if self.encode is None else [self.encode(pack, device) for pack in batch]
        whole = [pack if isinstance(pack, NoisedBatch) else drawn([pack], objective=self.objective, seed=self.seed)[0] for pack in packs]
        return [
            PreparedPack(pack.to(device, non_blocking=True), noised.to(device, non_blocking=True), flops)
            for pack, noised, flops in map(self._share, whole)
        ]

    def _share(self, whole: NoisedBatch) -> tuple[Batch, Noised, float]:
        """The part of a pack that this rank trains on, and the FLOPs of the whole pack."""
        batch, noised = whole if self.slicer is None else self.slicer.pack(*whole)
        return batch, noised, self._flops(whole.batch)

    def _flops(self, pack: Batch) -> float:
        if self.flops is None:
            return 0.0
        return float(TRAINING * self.flops.pack(pack.tokens.grids, pack.text.segments.lengths[: len(pack.tokens.grids)]))

    def predict(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """The network's prediction, for callbacks that measure the network between steps."""
        return self.dit(tokens, levels, text)

    def read(self, text: TextTokens) -> TextTokens:
        """The text states of a pack, by the part of the text encoder that is trained."""
        return self.text(text)

    def forward(self, prepared: PreparedPack) -> Loss:
        batch, noised = prepared.batch, prepared.noised
        text = self.text(batch.text)
        losses = self.objective.losses(self.dit, batch, noised, text if self.slicer is None else self.slicer.words(text))
        values = losses.detach()  # detached: `by_sample` may be called later, and must not keep the graph alive until then
        return Loss(
            total=losses.sum(),
            parts={"by_level": by_level(values, noised, bins=self.bins)},
            by_sample=lambda: by_clip(values, batch.tokens.segments.lengths[: prepared.samples]),
        )


def by_clip(losses: Float[Tensor, "N"], lengths: Sequence[int]) -> Float[Tensor, "G"]:
    """Sum the token losses over each clip of a pack; padding at the end counts for no clip."""
    return torch.stack([clip.sum() for clip in losses[: sum(lengths)].split(list(lengths))])
