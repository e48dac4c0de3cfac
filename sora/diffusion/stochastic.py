"""Samplers that add noise on the way, so that errors of earlier steps are forgotten. See `sora.diffusion.samplers` for the arguments."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path, like
from sora.diffusion.samplers import Draw, Predict, heun_steps

MOST_CHURN = 2**0.5 - 1  # Karras et al. 2022: no more noise at once than the state has already


def churn(
    predict: Predict,
    x: Float[Tensor, "..."],
    levels: Float[Tensor, "..."],
    *,
    path: Path,
    noise: Draw,
    rate: float,
    low: float,
    high: float,
) -> Float[Tensor, "..."]:
    """Heun's method with noise added before each step (Karras et al. 2022, algorithm 2): two predictions per step but one in the last.

    rate: their S_churn, by how much the noise grows in all steps together, as a share. low, high: noise is added at levels between these
    two only, without the first level of all if that is pure noise.
    """
    if rate < 0 or not 0 <= low < high <= 1:
        raise ValueError(f"sampler.rate={rate} must not be negative, and sampler.low={low} < sampler.high={high} lie in [0, 1]")
    steps = len(levels) - 1
    for step in range(steps):
        now, after = levels[step], levels[step + 1]
        raised = _raised(now, after, path, 1 + min(rate / steps, MOST_CHURN), low, high)
        x = _noised(x, now, raised, noise(step), path=path) if bool((raised != now).any()) else x
        x = heun_steps(predict, x, torch.stack([raised, after]), ends=step == steps - 1)
    return x


def restart(
    predict: Predict,
    x: Float[Tensor, "..."],
    levels: Float[Tensor, "..."],
    *,
    path: Path,
    noise: Draw,
    since: float,
    until: float,
    times: int,
) -> Float[Tensor, "..."]:
    """Heun's method that goes back: having come to the share `until` of all steps, noise is added up to the level of the share `since`, and
    the steps between are taken again, `times` times (Xu et al. 2023, algorithm 1)."""
    steps = len(levels) - 1
    begin, end = round(since * steps), round(until * steps)
    if not 0 <= begin < end <= steps or times < 0:
        raise ValueError(
            f"sampler.since={since} < sampler.until={until} must be shares in [0, 1] at least one of the {steps} steps apart, and"
            f" sampler.times={times} not negative"
        )
    if begin == 0 and times and not bool((path.alpha(levels[0]) > 0).all()):
        raise ValueError(f"sampler.since={since} goes back to pure noise, which forgets everything; give a larger share")
    x = heun_steps(predict, x, levels[: end + 1], ends=end == steps)
    for time in range(times):
        x = _noised(x, levels[end], levels[begin], noise(time), path=path)
        x = heun_steps(predict, x, levels[begin : end + 1], ends=end == steps)
    return x if end == steps else heun_steps(predict, x, levels[end:], ends=True)


def _noised(
    x: Float[Tensor, "..."], low: Float[Tensor, "..."], high: Float[Tensor, "..."], draw: Float[Tensor, "..."], *, path: Path
) -> Float[Tensor, "..."]:
    """A state of level `low` with as much noise added that its level is `high`. Rows for which both are equal stay as they are."""
    before, after = (path.alpha(level.double()).clamp_min(0) for level in (low, high))
    kept = after / torch.where(before > 0, before, torch.ones_like(before))
    added = (path.sigma(high.double()) ** 2 - (kept * path.sigma(low.double())) ** 2).clamp_min(0).sqrt()
    moved = like(kept.to(x), x) * x + like(added.to(x), x) * draw
    return torch.where(like((low != high).to(x.device), x), moved, x)


def _raised(now: Tensor, after: Tensor, path: Path, growth: float, low: float, high: float) -> Tensor:
    """The levels at which sigma / alpha is `growth` times as large, where noise is to be added."""
    wanted = (now > low) & (now <= high) & (now != after) & (path.alpha(now) > 0)
    if growth == 1 or not bool(wanted.any()):
        return now
    t = torch.where(wanted, now, torch.full_like(now, 0.5)).double()
    target = growth * path.sigma(t) / path.alpha(t)
    bottom, top = t, torch.ones_like(t)
    for _ in range(52):  # bisection: sigma / alpha grows with the level
        middle = (bottom + top) / 2
        less = path.sigma(middle) < target * path.alpha(middle)
        bottom, top = torch.where(less, middle, bottom), torch.where(less, top, middle)
    return torch.where(wanted, ((bottom + top) / 2).to(now.dtype), now)
