"""The loss of a captioner: attributes, clips against captions, and captions of each kind, weighed by how far training is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sora.captioner.network import CaptionNetwork, SeenClips
from sora.captioner.packs import CaptionedClips, CaptionLosses, Pairs, Sentences
from sora.captioner.words import END, PADDING

ATTRIBUTES, CONTRAST = "attributes", "contrast"


class CaptionObjective:
    """Weighs the losses of attributes, of clips against captions, and of captions of each kind.

    stages: weights of the terms "attributes", "contrast" and of kinds of captions, each with `until`, the share of the run's steps at which
    it ends; a term that a stage does not name has weight 0. hidden_words: mean share of a caption's words that the decoder is not shown
    while it learns to write the next ones, drawn anew for each caption between 0 and twice that: so it has to look at the clip, and cannot
    complete what it has often read. hidden_tokens: the same of a clip's tokens.
    """

    def __init__(self, *, stages: Sequence[Mapping[str, Any]], hidden_words: float, hidden_tokens: float) -> None:
        ends = [stage.get("until") for stage in stages]
        if not stages or None in ends or ends != sorted(set(ends)) or ends[-1] != 1:  # pyright: ignore[reportArgumentType]
            raise ValueError(f"objective.stages end at {ends}: each has an `until` above that of the one before, and the last is 1")
        for name, share in (("hidden_words", hidden_words), ("hidden_tokens", hidden_tokens)):
            if not 0 <= share <= 0.5:
                raise ValueError(f"objective.{name}={share} is a mean share between 0 and 0.5")
        weights = [{name: float(value) for name, value in stage.items() if name != "until"} for stage in stages]
        if min((value for each in weights for value in each.values()), default=0) < 0 or not all(map(any, (w.values() for w in weights))):
            raise ValueError("objective.stages: weights are 0 or more, and every stage has one above 0")
        self.stages = [(float(end or 0), each) for end, each in zip(ends, weights, strict=True)]
        self.hidden_words, self.hidden_tokens = hidden_words, hidden_tokens

    @property
    def terms(self) -> set[str]:
        """The names of all terms that some stage weighs."""
        return {name for _, weights in self.stages for name, weight in weights.items() if weight > 0}

    def weights(self, share: float) -> dict[str, float]:
        """The weights above 0 when this share of the steps is done, in [0, 1)."""
        chosen = next((weights for end, weights in self.stages if share < end), self.stages[-1][1])
        return {name: weight for name, weight in chosen.items() if weight > 0}

    def losses(self, network: CaptionNetwork, clips: CaptionedClips, weights: Mapping[str, float]) -> CaptionLosses:
        """The losses of the terms that have a weight."""
        seen = network.see(clips.tokens, kept=clips.kept)
        terms: dict[str, Tensor] = {}
        alone = torch.zeros(len(seen.memory), device=seen.memory.device)
        for name, weight in weights.items():
            if name == CONTRAST:
                own, other = _contrast(network, seen, clips.pairs)
                terms[name] = own + other
            elif name == ATTRIBUTES:
                terms[name] = own = _answering(seen, clips.targets)
            else:
                terms[name] = own = _writing(network, seen, clips.sentences[name])
            alone = alone + weight * own
        return CaptionLosses(
            terms, _idle(network, seen), alone, {name: _hits(seen.answers[name], target) for name, target in clips.targets.items()}
        )


def _idle(network: CaptionNetwork, seen: SeenClips) -> Float[Tensor, "1"]:
    """Zero, as a function of every parameter: also those that a stage does not train, or that a pack without captions does not reach, get a
    gradient, so that ranks that exchange gradients or share weights do the same in every step."""
    parts = [seen.whole.sum(), network.read(_end(seen.whole.device)).sum(), _unread(network, seen), network.sharpness.sum()]
    return 0.0 * torch.stack([*parts, *(logits.sum() for logits in seen.answers.values())]).sum(0, keepdim=True)


def _end(device: torch.device) -> Int[Tensor, "1 1"]:
    return torch.full((1, 1), END, device=device)


def _unread(network: CaptionNetwork, seen: SeenClips) -> Float[Tensor, ""]:
    """Zero, as a function of the decoder."""
    end = _end(seen.whole.device)
    return 0.0 * network.write(end, seen, 0 * end[0]).sum()


def _answering(seen: SeenClips, targets: Mapping[str, Float[Tensor, "G _"]]) -> Float[Tensor, "G"]:
    """Cross-entropy of the answers to all attributes that are known of each clip, summed over attributes."""
    each = [-(target * seen.answers[name].float().log_softmax(-1)).sum(-1) for name, target in targets.items()]
    return torch.stack(each).sum(0) if each else seen.memory.new_zeros(len(seen.memory))


def _hits(logits: Float[Tensor, "G V"], target: Float[Tensor, "G V"]) -> tuple[Tensor, Tensor]:
    """How many likeliest values are among those that a clip shows, and of how many clips they are known."""
    known = target.sum(-1) > 0
    right = target.gather(-1, logits.argmax(-1, keepdim=True))[:, 0] > 0
    return right.sum().float(), known.sum().float()


def _writing(network: CaptionNetwork, seen: SeenClips, lines: Sentences) -> Float[Tensor, "G"]:
    """Cross-entropy of the next word, averaged over the words of each clip's caption; 0 for a clip without one of this kind."""
    found = seen.memory.new_zeros(len(seen.memory), dtype=torch.float32)
    if not len(lines.clips):  # ranks that share weights call each part of the network equally often
        return found + _unread(network, seen)
    logits, wanted = network.write(lines.shown[:, :-1], seen, lines.clips), lines.words[:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=PADDING, reduction="none").view_as(wanted)
    return found.index_add(0, lines.clips, each.sum(-1) / (wanted != PADDING).sum(-1))


def _contrast(network: CaptionNetwork, seen: SeenClips, pairs: Pairs | None) -> tuple[Float[Tensor, "G"], Float[Tensor, "G"]]:
    """The symmetric cross-entropy of clips and captions (Radford et al. 2021): of finding a clip's caption among all captions and wrong
    ones, and of finding a caption's clip among the clips. Captions with the same text count alike."""
    zeros = seen.whole.new_zeros(len(seen.whole), dtype=torch.float32)
    if pairs is None:
        return zeros, zeros + 0.0 * network.read(_end(zeros.device)).sum()
    cosines = seen.whole[pairs.clips] @ network.read(pairs.words).T
    scores, count = network.sharpness * cosines.float(), len(pairs.clips)
    caption = -(pairs.same * scores.log_softmax(1)[:, :count]).sum(1)
    clip = -(pairs.same * scores[:, :count].T.log_softmax(1)).sum(1)
    return zeros.index_add(0, pairs.clips, caption), zeros.index_add(0, pairs.clips, clip)
