"""Packs of clips with their captions, as a captioner's loss takes them, and the losses that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sora.tokens import Movable, PackedTokens


@dataclass(frozen=True, eq=False)
class Sentences(Movable):
    """Captions of a pack's clips. words: (R, L), start and end included. shown: the same with hidden words. clips: (R,), of which clip."""

    words: Int[Tensor, "R L"]
    shown: Int[Tensor, "R L"]
    clips: Int[Tensor, "R"]


@dataclass(frozen=True, eq=False)
class Pairs(Movable):
    """Captions for the contrastive loss: first one of each clip that has any, P of them, then wrong ones.

    words: (R, L). clips: (P,), whose they are. same: (P, P), rows that sum to 1 over the captions with the same text.
    """

    words: Int[Tensor, "R L"]
    clips: Int[Tensor, "P"]
    same: Float[Tensor, "P P"]


@dataclass(frozen=True, eq=False)
class CaptionedClips:
    """A pack of G clips with all that its loss needs.

    kept: (N,), tokens that are shown (None: all). targets: by attribute, (G, V): rows that sum to 1 over the values that a clip shows, or
    to 0 where nothing is known. sentences: by kind. pairs: None if no clip has a caption, or without a contrastive loss.
    """

    tokens: PackedTokens
    kept: Bool[Tensor, "N"] | None
    targets: Mapping[str, Float[Tensor, "G _"]]
    sentences: Mapping[str, Sentences]
    pairs: Pairs | None

    def to(self, device: torch.device, *, non_blocking: bool) -> CaptionedClips:
        def move(item: Tensor) -> Tensor:
            return item.to(device, non_blocking=non_blocking)

        return CaptionedClips(
            self.tokens.to(device, non_blocking=non_blocking),
            None if self.kept is None else move(self.kept),
            {name: move(target) for name, target in self.targets.items()},
            {kind: lines.to(device, non_blocking=non_blocking) for kind, lines in self.sentences.items()},
            None if self.pairs is None else self.pairs.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class CaptionLosses:
    """Losses of a pack's clips. terms: by name, (G,), not yet weighed. idle: zero, as a function of every parameter. alone: (G,), weighed
    and summed, of each clip without those of its parts that depend on other clips. right: by attribute, the numbers of answers that are
    right, and of clips whose answer is known."""

    terms: Mapping[str, Float[Tensor, "G"]]
    idle: Float[Tensor, "1"]
    alone: Float[Tensor, "G"]
    right: Mapping[str, tuple[Tensor, Tensor]]
