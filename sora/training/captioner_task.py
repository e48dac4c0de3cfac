"""Training a captioner: packs of clips with their captions in, the objective's loss of each clip out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.data import Dataset

from sora.captioner.attributes import Attributes
from sora.captioner.layers import rows
from sora.captioner.network import CaptionNetwork
from sora.captioner.objective import ATTRIBUTES, CONTRAST, CaptionObjective
from sora.captioner.packs import CaptionedClips, Pairs, Sentences
from sora.captioner.words import END, HIDDEN, PADDING, Words
from sora.system.draws import generator
from sora.text.all_captions import captions_in
from sora.tokens import Batch, PackedTokens
from sora.training.module import Loss


class StepPack(NamedTuple):
    """A pack as the dataset gives it, and the number of its step, from 0."""

    pack: Any
    step: int


class NumberedSteps(Dataset):
    """The dataset of a plan's steps, whose packs know their step: the objective's weights depend on it."""

    def __init__(self, steps: Any) -> None:
        self.steps, self.plan, self.quarantine, self.keys = steps, steps.plan, steps.quarantine, steps.keys

    def __getitem__(self, step: int) -> list[StepPack]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[StepPack]:
        """One rank's packs of a step."""
        return [StepPack(pack, step) for pack in self.steps.share(step, ranks=ranks, rank=rank)]


@dataclass(frozen=True)
class PreparedCaptions:
    """A pack on the training device, with the weights of the losses at its step."""

    clips: CaptionedClips
    weights: Mapping[str, float]
    sample_ids: tuple[int, ...]

    @property
    def count(self) -> Tensor:
        return torch.tensor(float(self.samples), device=self.clips.tokens.patches.device)

    @property
    def samples(self) -> int:
        return len(self.sample_ids)

    @property
    def tokens(self) -> int:
        return self.clips.tokens.real

    @property
    def flops(self) -> float:
        return 0.0


class CaptionerTask(nn.Module):
    """A captioning network with its objective. What is hidden of captions and clips, and wrong captions, are pure functions of (seed,
    epoch, sample id); the weights of the losses are of the step.

    steps: of the whole run. encode: maps a loaded pack to a `Batch` on the device; None if packs are loaded as batches.
    """

    ahead: ClassVar[None] = None  # see `DiffusionTask.ahead`

    def __init__(
        self,
        *,
        network: CaptionNetwork,
        words: Words,
        attributes: Attributes,
        objective: CaptionObjective,
        seed: int,
        steps: int,
        encode: Callable[[Any, torch.device], Batch] | None,
    ) -> None:
        super().__init__()
        if unknown := sorted(objective.terms - {ATTRIBUTES, CONTRAST, *words.kinds}):
            raise ValueError(
                f"objective.stages weighs {unknown[0]}, which is neither {ATTRIBUTES} nor {CONTRAST} nor one of kinds={list(words.kinds)}"
            )
        self.network = network
        self.words, self.attributes, self.objective, self.seed, self.steps, self.encode = words, attributes, objective, seed, steps, encode

    def prepare(self, batch: Sequence[StepPack], device: torch.device) -> list[PreparedCaptions]:
        """The packs of a step, with captions as ids and answers as targets."""
        return [self._prepare(pack, step, device) for pack, step in batch]

    def _prepare(self, pack: Any, step: int, device: torch.device) -> PreparedCaptions:
        whole = pack if self.encode is None else self.encode(pack, device)
        weights = self.objective.weights(step / self.steps)
        clips = captioned(whole, self.words, self.attributes, self.objective, weights=weights, seed=self.seed)
        return PreparedCaptions(clips.to(device, non_blocking=True), weights, tuple(whole.sample_ids))

    def forward(self, prepared: PreparedCaptions) -> Loss:
        found = self.objective.losses(self.network, prepared.clips, prepared.weights)
        zeros = found.alone.new_zeros(found.alone.shape)
        total = sum((weight * found.terms[name] for name, weight in prepared.weights.items()), zeros).sum()
        values, count = found.alone.detach(), prepared.count
        parts = {name: (term.detach().sum(), count) for name, term in found.terms.items()}
        parts |= {f"{name}_right": pair for name, pair in found.right.items() if ATTRIBUTES in prepared.weights}
        return Loss(total=total + found.idle.sum(), parts=parts, by_sample=lambda: values)


def captioned(
    batch: Batch, words: Words, attributes: Attributes, objective: CaptionObjective, *, weights: Mapping[str, float], seed: int
) -> CaptionedClips:
    """A pack with what the weighed losses need. The draws of a clip follow from (seed, epoch, sample id)."""
    told = [captions_in(states) for states in batch.text.states.split(list(batch.text.segments.lengths))[: len(batch.sample_ids)]]
    draws = [
        generator("captioner", seed=seed, epoch=epoch, sample=sample) for sample, epoch in zip(batch.sample_ids, batch.epochs, strict=True)
    ]
    known = [attributes.of(captions, facts) for captions, facts in told]
    targets = {name: _target([each.get(name, ()) for each in known], values) for name, values in attributes.values.items()}
    first = [next((text for kind in words.kinds for other, text in captions if other == kind), None) for captions, _ in told]
    wrong = [None if text is None else attributes.changed(text, draw) for text, draw in zip(first, draws, strict=True)]
    kept = _kept(batch.tokens, draws, objective.hidden_tokens)
    by_kind = {
        kind: _sentences([[text for other, text in captions if other == kind] for captions, _ in told], kind, words, draws, objective)
        for kind in words.kinds
    }  # all kinds, so that the draws of a clip do not depend on the step
    return CaptionedClips(
        tokens=batch.tokens,
        kept=kept,
        targets=targets,
        sentences={kind: lines for kind, lines in by_kind.items() if kind in weights},
        pairs=_pairs(first, wrong, words) if CONTRAST in weights else None,
    )


def _target(shown: Sequence[Sequence[str]], values: Sequence[str]) -> Tensor:
    found = torch.zeros(len(shown), len(values))
    for row, names in enumerate(shown):
        for name in names:
            found[row, list(values).index(name)] = 1 / len(names)
    return found


def _kept(tokens: PackedTokens, draws: Sequence[np.random.Generator], share: float) -> Bool[Tensor, "N"] | None:
    """Which tokens are shown; of each clip at least one."""
    if not share:
        return None
    kept = torch.ones(len(tokens.patches), dtype=torch.bool)
    start = 0
    for grid, draw in zip(tokens.grids, draws, strict=True):
        shown = torch.from_numpy(draw.random(grid.tokens)) >= 2 * share * draw.random()
        shown[int(draw.integers(grid.tokens))] = True
        kept[start : start + grid.tokens] = shown
        start += grid.tokens
    return kept


def _sentences(
    texts: Sequence[Sequence[str]], kind: str, words: Words, draws: Sequence[np.random.Generator], objective: CaptionObjective
) -> Sentences:
    """One caption of a kind of each clip that has any, drawn among them."""
    lines, shown, clips = [], [], []
    for clip, (mine, draw) in enumerate(zip(texts, draws, strict=True)):
        if not mine:
            continue
        line = [words.start(kind), *words.encode(mine[int(draw.integers(len(mine)))]), END]
        gone = draw.random(len(line)) < 2 * objective.hidden_words * draw.random()
        lines.append(line)
        shown.append([line[0], *(HIDDEN if hide else word for word, hide in zip(line[1:], gone[1:], strict=True))])
        clips.append(clip)
    return Sentences(rows(lines, fill=PADDING), rows(shown, fill=PADDING), torch.tensor(clips, dtype=torch.int64))


def _pairs(first: Sequence[str | None], wrong: Sequence[str | None], words: Words) -> Pairs | None:
    clips = [clip for clip, text in enumerate(first) if text is not None]
    said = [text for text in first if text is not None]
    if not said:
        return None
    same = torch.tensor([[float(one == other) for other in said] for one in said])
    others = [text for text in wrong if text is not None and text not in said]
    lines = [[*words.encode(text), END] for text in (*said, *others)]
    return Pairs(rows(lines, fill=PADDING), torch.tensor(clips), same / same.sum(1, keepdim=True))
