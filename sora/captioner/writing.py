"""Captions of seen clips, by beam search; a beam of one is the greedy choice. A clip's captions do not depend on its batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sora.captioner.network import CaptionNetwork, SeenClips
from sora.captioner.words import END, HIDDEN, PADDING, SPECIAL, Words


class Written(NamedTuple):
    """A caption. score: the mean log-probability of its words, its end included. whole: whether it came to its end."""

    text: str
    score: float
    whole: bool


class _Line(NamedTuple):
    """A caption that is being written: its ids, the start included, and the sum of their log-probabilities."""

    ids: tuple[int, ...]
    total: float

    @property
    def mean(self) -> float:
        return self.total / max(len(self.ids) - 1, 1)


@torch.no_grad()
def write_captions(network: CaptionNetwork, words: Words, seen: SeenClips, kind: str, *, beam: int, most: int) -> list[Written]:
    """One caption of a kind for each clip. beam: candidates that are kept for each clip. most: words at most; a caption that has not ended
    by then is returned as it stands, with `whole` false.

    Raises:
        ValueError: the captioner does not write this kind, or beam or most is below 1.
    """
    if min(beam, most) < 1:
        raise ValueError(f"beam={beam} and most={most} must be at least 1: candidates of a caption, and words of it")
    start, count = words.start(kind), len(seen.memory)
    open_lines: list[list[_Line]] = [[_Line((start,), 0.0)] for _ in range(count)]
    ended: list[list[_Line]] = [[] for _ in range(count)]
    for _ in range(most):
        flat = [(clip, line) for clip, lines in enumerate(open_lines) for line in lines]
        if not flat:
            break
        scores, ids = _next(network, words, seen, flat, beam)
        grown: list[list[_Line]] = [[] for _ in range(count)]
        for (clip, line), score, best in zip(flat, scores.tolist(), ids.tolist(), strict=True):
            grown[clip] += [_Line((*line.ids, number), line.total + more) for number, more in zip(best, score, strict=True)]
        for clip, lines in enumerate(grown):
            kept = sorted(lines, key=lambda line: -line.total)[:beam]
            ended[clip] += [line for line in kept if line.ids[-1] == END]
            open_lines[clip] = [line for line in kept if line.ids[-1] != END] if len(ended[clip]) < beam else []
    return [_best(words, done, left) for done, left in zip(ended, open_lines, strict=True)]


def _next(network: CaptionNetwork, words: Words, seen: SeenClips, flat: list[tuple[int, _Line]], beam: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of the `beam` best next words of each line; all lines are equally long."""
    device = seen.memory.device
    clips = torch.tensor([clip for clip, _ in flat], device=device)
    ids = torch.tensor([line.ids for _, line in flat], device=device)
    logits = network.write(ids, seen, clips)[:, -1].float()
    logits[:, [PADDING, HIDDEN, *range(SPECIAL, SPECIAL + len(words.kinds))]] = -torch.inf
    return torch.topk(logits.log_softmax(-1), min(beam, logits.shape[-1]), dim=-1)


def _best(words: Words, ended: list[_Line], left: list[_Line]) -> Written:
    best = max(ended or left, key=lambda line: line.mean)
    return Written(words.decode(best.ids[1:]), best.mean, bool(ended))
