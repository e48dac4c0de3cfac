"""Training the denoising network: packs of latent patches in, the objective's token losses out."""

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
    """A pack with its noise and levels, where it was made."""

    batch: Batch
    noised: Noised


def drawn(packs: Sequence[Batch], *, objective: Objective, seed: int) -> list[NoisedBatch]:
    """Packs with their noise and levels, which follow from the seed and the clips."""
    return [NoisedBatch(pack, objective.noise(pack, seed=seed)) for pack in packs]


@dataclass(frozen=True)
class PreparedPack:
    """A pack with its noise and levels, on the device. flops: of a training step on it.

    Where ranks share a pack, patches and noise are of this rank's tokens, and so are `count` and the loss; all else is of the whole pack.
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
    """The network, the text module that turns a pack's captions into what it attends to, and the objective.

    text: the identity for frozen encoders, whose states are cached; a byte-level encoder learns along. bins: of noise levels, in the log.
    encode: makes a batch of what loading gives, on the device (None: it is one already). flops: the operations of the network's forward
    pass, for the throughput in the log; None: not counted.
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
        self.slicer: Slicer | None = None  # a strategy's

    @property
    def ahead(self) -> Callable[[Sequence[Batch]], list[NoisedBatch]] | None:
        """What may be done to packs while earlier ones are trained on, by who loads them: draw. None: they are made on the device first."""
        return partial(drawn, objective=self.objective, seed=self.seed) if self.encode is None else None

    def prepare(self, batch: Sequence[Any], device: torch.device) -> list[PreparedPack]:
        """Packs, drawn or not, on the device. Noise is drawn where a pack lies and then moved, so that it is the same on every device."""
        packs = batch if self.encode is None else [self.encode(pack, device) for pack in batch]
        whole = [pack if isinstance(pack, NoisedBatch) else drawn([pack], objective=self.objective, seed=self.seed)[0] for pack in packs]
        return [
            PreparedPack(pack.to(device, non_blocking=True), noised.to(device, non_blocking=True), flops)
            for pack, noised, flops in map(self._share, whole)
        ]

    def _share(self, whole: NoisedBatch) -> tuple[Batch, Noised, float]:
        """What this rank trains on of a pack, and what the whole of it costs."""
        batch, noised = whole if self.slicer is None else self.slicer.pack(*whole)
        return batch, noised, self._flops(whole.batch)

    def _flops(self, pack: Batch) -> float:
        if self.flops is None:
            return 0.0
        return float(TRAINING * self.flops.pack(pack.tokens.grids, pack.text.segments.lengths[: len(pack.tokens.grids)]))

    def predict(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """The network alone, for what measures it between steps."""
        return self.dit(tokens, levels, text)

    def read(self, text: TextTokens) -> TextTokens:
        """The part of the text encoder that learns along, alone."""
        return self.text(text)

    def forward(self, prepared: PreparedPack) -> Loss:
        batch, noised = prepared.batch, prepared.noised
        text = self.text(batch.text)
        losses = self.objective.losses(self.dit, batch, noised, text if self.slicer is None else self.slicer.words(text))
        values = losses.detach()  # what is asked later must not hold the graph until then
        return Loss(
            total=losses.sum(),
            parts={"by_level": by_level(values, noised, bins=self.bins)},
            by_sample=lambda: by_clip(values, batch.tokens.segments.lengths[: prepared.samples]),
        )


def by_clip(losses: Float[Tensor, "N"], lengths: Sequence[int]) -> Float[Tensor, "G"]:
    """The token losses summed over each clip of a pack; padding at the end is left out."""
    return torch.stack([clip.sum() for clip in losses[: sum(lengths)].split(list(lengths))])
