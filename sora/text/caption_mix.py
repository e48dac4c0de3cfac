"""Choice and dropping of a clip's caption in an epoch, as functions of (seed, epoch, sample id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sora.system.draws import generator


def keep_caption(*, seed: int, epoch: int, sample: int, rate: float) -> bool:
    """Whether a sample keeps its caption in this epoch; it is dropped with probability `rate`, to train the unconditional prediction."""
    if not 0 <= rate <= 1:
        raise ValueError(f"data.drop={rate} is no share; it lies between 0 and 1")
    return bool(generator("drop", seed=seed, epoch=epoch, sample=sample).random() >= rate)


def choose_caption(captions: Sequence[tuple[str, str]], weights: Mapping[str, float] | None, *, seed: int, epoch: int, sample: int) -> str:
    """Draw one of a clip's captions with probability proportional to the weight of its kind; "" for a clip without captions.

    captions: (kind, text) pairs. weights: weight of each kind, 0 for kinds that are missing; None for equal weights.
    Raises ValueError for a negative weight, or if no caption of the clip has a positive weight.
    """
    if not captions:
        return ""
    shares = [1.0 if weights is None else float(weights.get(kind, 0.0)) for kind, _ in captions]
    kinds = sorted({kind for kind, _ in captions})
    if min(shares) < 0:
        raise ValueError(f"data.captions={dict(weights or {})} gives a weight below 0 to a clip's captions, of kinds {kinds}")
    if not sum(shares) > 0:
        raise ValueError(f"data.captions={dict(weights or {})} gives no positive weight to any of a clip's captions, of kinds {kinds}")
    point = generator("caption", seed=seed, epoch=epoch, sample=sample).random() * sum(shares)
    for share, (_, text) in zip(shares, captions, strict=True):
        point -= share
        if point < 0:
            return text
    return next(text for share, (_, text) in zip(shares[::-1], captions[::-1], strict=True) if share > 0)  # if rounding leaves point >= 0
