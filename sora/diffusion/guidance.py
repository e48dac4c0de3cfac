"""Guidance: combines named predictions of a network, outside of it.

A guidance takes a function that returns named predictions at (x, t), computed together, and returns one that samplers call. The names are
"text", the prediction for the prompt, and "away", for the negative prompt or the empty caption. Levels t are on the CPU, so that what they
say costs no wait for a device. clips: (N,), the clip that each row of x belongs to; None if each row is a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sora.diffusion.path import Path, like
from sora.diffusion.prediction import clean_prediction, convert, velocity_prediction
from sora.diffusion.samplers import Predict

Ask = Callable[[Tensor, Tensor, tuple[str, ...]], list[Tensor]]
TEXT, BOTH = ("text",), ("text", "away")


def guide(
    ask: Ask,
    *,
    scale: float,
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    clips: Int[Tensor, "N"] | None = None,
    path: Path | None = None,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022): away + scale · (text - away); at scale 1 only the text's prediction is asked for.

    interval: guide only at noise levels low < t <= high (Kynkäänniemi et al. 2024); elsewhere the prediction is the text's.
    rescale: in [0, 1]. At 1 each clip's guided prediction gets the standard deviation of its prediction for the text; smaller values
    interpolate between the two (Lin et al. 2023, eqs. 15-16).
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance.rescale={rescale} must lie in [0, 1]")

    def combined(x: Tensor, t: Tensor) -> Tensor:
        positive, negative = ask(x, t, BOTH)
        result = negative + scale * (positive - negative)
        if rescale > 0:
            index = _index(x, clips)
            ratio = spread(positive, index) / spread(result, index).clamp_min(torch.finfo(x.dtype).tiny)
            result = like((rescale * ratio + (1 - rescale))[index], result) * result
        return result if interval is None else torch.where(_inside(t, interval, x), result, positive)

    return _within(ask, combined, scale, interval)


def projected_guide(
    ask: Ask,
    *,
    scale: float,
    parallel: float,
    most: float | None,
    momentum: float,
    interval: Sequence[float] | None = None,
    clips: Int[Tensor, "N"] | None = None,
    path: Path | None = None,
) -> Predict:
    """Adaptive projected guidance (Sadat et al. 2025, APG), of clean predictions: text + (scale - 1) · (orthogonal + parallel · along).

    The difference of both predictions is split, for each clip, into the part along the text's prediction, which only saturates, and the
    rest. parallel: their eta; 1 is classifier-free guidance, 0 leaves the part out. most: their r, as the root mean square of a clip's
    difference at most; None: any. momentum: their beta, below 0 to lean away from the differences before.
    """
    if most is not None and most <= 0:
        raise ValueError(f"guidance.most={most} must be above 0; null is no limit")
    if not -1 < momentum < 1:
        raise ValueError(f"guidance.momentum={momentum} must lie between -1 and 1")
    if path is None:
        raise ValueError("projected_guide needs the path whose velocities it combines")
    mean: list[Tensor] = []

    def combined(x: Tensor, t: Tensor) -> Tensor:
        at, index = t.to(x.device), _index(x, clips)
        predictions = ask(x, t, BOTH)
        positive, negative = (convert(one, x, at, velocity_prediction, clean_prediction, path=path) for one in predictions)
        difference = positive - negative
        if momentum:
            difference = difference + momentum * mean[0] if mean else difference
            mean[:] = [difference]
        if most is not None:
            size = (summed(difference, difference, index) / summed(torch.ones_like(x), torch.ones_like(x), index)).sqrt()
            difference = like((most / size.clamp_min(most))[index], x) * difference
        share = summed(difference, positive, index) / summed(positive, positive, index).clamp_min(torch.finfo(x.dtype).tiny)
        along = like(share[index], x) * positive
        result = positive + (scale - 1) * (difference - along + parallel * along)
        guided = convert(result, x, at, clean_prediction, velocity_prediction, path=path)
        moving = like((path.sigma(t) > 0).to(x.device), x)  # at level 0 a clean prediction says nothing about the velocity
        wanted = moving if interval is None else moving & _inside(t, interval, x)
        return torch.where(wanted, guided, predictions[0])

    return _within(ask, combined, scale, interval)


def zero_star_guide(
    ask: Ask,
    *,
    scale: float,
    still: float,
    interval: Sequence[float] | None = None,
    clips: Int[Tensor, "N"] | None = None,
    path: Path | None = None,
) -> Predict:
    """CFG-Zero* (Fan et al. 2025): as `guide`, with the away prediction scaled, for each clip, to its best fit to the text's.

    still: at levels above it the velocity is 0, and nothing is asked for: what an early network says there is worse than nothing. 1: none.
    """
    if not 0 < still <= 1:
        raise ValueError(f"guidance.still={still} must lie in (0, 1]; 1 moves from the first step on")

    def combined(x: Tensor, t: Tensor) -> Tensor:
        index = _index(x, clips)
        positive, negative = ask(x, t, BOTH)
        fit = summed(positive, negative, index) / summed(negative, negative, index).clamp_min(torch.finfo(x.dtype).tiny)
        fitted = like(fit[index], x) * negative
        result = fitted + scale * (positive - fitted)
        return result if interval is None else torch.where(_inside(t, interval, x), result, positive)

    guided = _within(ask, combined, scale, interval)

    def stilled(x: Tensor, t: Tensor) -> Tensor:
        resting = t > still
        if bool(resting[t > 0].all()) and bool((t > 0).any()):
            return torch.zeros_like(x)
        return torch.where(like(resting.to(x.device), x), torch.zeros_like(x), guided(x, t)) if bool(resting.any()) else guided(x, t)

    return stilled


def _within(ask: Ask, combined: Predict, scale: float, interval: Sequence[float] | None) -> Predict:
    """The combined prediction, and the text's alone where that is all that is needed."""
    if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"guidance.interval={list(interval)} must be two noise levels, low < high, within [0, 1]")

    def guided(x: Tensor, t: Tensor) -> Tensor:
        outside = interval is not None and not bool(((t > interval[0]) & (t <= interval[1])).any())
        return ask(x, t, TEXT)[0] if outside or scale == 1 else combined(x, t)

    return guided


def _inside(t: Tensor, interval: Sequence[float], x: Tensor) -> Tensor:
    return like(((t > interval[0]) & (t <= interval[1])).to(x.device), x)


def _index(x: Tensor, clips: Tensor | None) -> Tensor:
    return torch.arange(len(x), device=x.device) if clips is None else clips


def summed(one: Float[Tensor, "N ..."], other: Float[Tensor, "N ..."], clips: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """The inner product of two tensors over all values of each clip, then zeros up to N. clips: the clip that each row belongs to."""
    rows = (one * other).reshape(len(one), -1).sum(1)
    return torch.zeros(len(rows), dtype=rows.dtype, device=rows.device).index_add(0, clips, rows)


def spread(x: Float[Tensor, "N ..."], clips: Int[Tensor, "N"]) -> Float[Tensor, "G"]:
    """Standard deviation over all values of each clip. clips: the clip that each row of x belongs to."""
    rows = x.reshape(len(x), -1)
    groups = int(clips.max()) + 1
    zero = torch.zeros(groups, dtype=x.dtype, device=x.device)
    count = zero.index_add(0, clips, torch.full_like(rows[:, 0], rows.shape[1])).clamp_min(1)
    mean = zero.index_add(0, clips, rows.sum(1)) / count
    square = zero.index_add(0, clips, ((rows - mean[clips, None]) ** 2).sum(1))
    return (square / count).sqrt()
