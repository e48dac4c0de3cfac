"""Diversity of one set: the Vendi score of its features, the inception score of its class logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.system.terminal import counted


def vendi_score(features: Float[Tensor, "n d"]) -> float:
    """The effective number of different samples, 1 to n: exp of the entropy of the eigenvalues of K / n, for the cosine kernel K.

    Friedman and Dieng 2023, definition 3.1. Raises ValueError for a sample whose features are all zero: it has no direction.
    """
    features = features.double()
    length = features.norm(dim=1, keepdim=True)
    empty = (length[:, 0] == 0).nonzero().flatten().tolist()
    if empty or not len(features):
        raise ValueError(f"the Vendi score needs features that are not all zero; those of clips {empty[:10]} of {len(features)} are")
    # Eigenvalues of K / n are the squared singular values of the unit features over n: d may be far below n, or above.
    shares = torch.linalg.svdvals(features / length).square() / len(features)
    return float(_entropy(shares).exp())


def inception_score(logits: Float[Tensor, "n classes"], *, splits: int = 1, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | clip) from p(class), 1 to the number of classes (Salimans et al. 2016).

    splits: parts of the set, drawn with `seed`, each scored by itself. Returns the mean and the standard deviation over parts. With one
    part the score depends on no order or draw; many papers use ten parts, which score lower.
    """
    if not 1 <= splits <= len(logits):
        clips = counted(len(logits), "clip does", "clips do")
        raise ValueError(f"{clips} not make {counted(splits, 'part')}; set splits to 1 or more, and to at most that")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)) if splits > 1 else torch.arange(len(logits))
    scores = []
    for part in order.to(logits.device).tensor_split(splits):
        shares = logits[part].double().softmax(dim=1)
        within = torch.stack([_entropy(row) for row in shares]).mean()
        scores.append((_entropy(shares.mean(dim=0)) - within).exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(unbiased=False))


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum()
