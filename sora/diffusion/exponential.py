"""Exponential integrators: samplers that solve the linear part of the probability-flow equation exactly.

With D(x, t) = E[x0 | x_t] and the logarithm of the signal-to-noise ratio lambda = ln(alpha / sigma), the equation is

    x(s) = sigma(s) / sigma(t) x(t) + sigma(s) · integral of e^lambda D dlambda from lambda(t) to lambda(s)

(Lu et al. 2022b, eq. 8), so that only D needs to be approximated: by a polynomial in lambda through what the network said before. All
coefficients follow from the levels alone and are computed in float64 on the CPU. At pure noise lambda is -infinity and at data +infinity:
a step from or to there takes D as constant, and a polynomial does not reach beyond. Where levels end at data, the degree is at most the
number of steps left, as lambda grows fast there. See `sora.diffusion.samplers` for the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path, like
from sora.diffusion.prediction import solve, velocity_prediction
from sora.diffusion.samplers import Draw, Predict


def ddim(
    predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw, eta: float = 0.0
) -> Float[Tensor, "..."]:
    """DDIM (Song et al. 2021a, eq. 12): first order, one prediction per step. eta: in [0, 1], the share of the noise of DDPM (eq. 16) that
    is drawn anew; 0 draws none."""
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler.eta={eta} of ddim must lie in [0, 1]")
    table = _Table.of(levels, path)
    for step, (now, after) in enumerate(pairwise(range(len(levels)))):
        clean, eps = solve(predict(x, levels[now]), x, levels[now].to(x.device), velocity_prediction, path=path)
        alpha, sigma = table.alpha[after], table.sigma[after]
        # Of the noise after the step, the part that DDPM's posterior draws anew.
        fresh = eta * sigma * (1 - table.ratio[step] ** 2).clamp_min(0).sqrt()
        kept = (sigma**2 - fresh**2).clamp_min(0).sqrt()
        moved = _on(alpha, x) * clean + _on(kept, x) * eps
        if eta > 0:
            moved = moved + _on(fresh, x) * noise(step)
        x = torch.where(_on(table.moving[step], x), moved, x)
    return x


def dpm_solver(
    predict: Predict,
    x: Float[Tensor, "..."],
    levels: Float[Tensor, "..."],
    *,
    path: Path,
    noise: Draw,
    order: int = 2,
    eta: float = 0.0,
) -> Float[Tensor, "..."]:
    """DPM-Solver++ (Lu et al. 2022b), multistep of order 2 (2M) or 3 (3M): one prediction per step.

    eta: 0 solves the probability-flow equation, 1 the reverse stochastic one (2M SDE, 3M SDE); other values scale the noise. Order 3
    integrates the quadratic through three predictions exactly; published code halves its last term, which leaves order 2.
    """
    _refuse_order(order, "dpm_solver")
    if eta < 0:
        raise ValueError(f"sampler.eta={eta} of dpm_solver must not be negative")
    table, past = _Table.of(levels, path), list[Tensor]()
    for step in range(len(levels) - 1):
        past = [_clean(predict, x, levels[step], path), *past][:order]
        x = table.moved(x, past[: table.most(step, order)], step, eta=eta, noise=noise)
    return x


def unipc(
    predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw, order: int = 2
) -> Float[Tensor, "..."]:
    """UniPC (Zhao et al. 2023, B2(h)) of order 2 or 3, one prediction per step: each is also used to correct the step that led to it."""
    _refuse_order(order, "unipc")
    table, past, start = _Table.of(levels, path), list[Tensor](), x
    for step in range(len(levels) - 1):
        new = _clean(predict, x, levels[step], path)
        if step:
            x = table.corrected(start, x, new, past, step - 1)
        past, start = [new, *past][: table.most(step, order)], x
        x = table.moved(x, past, step)
    return x


def _refuse_order(order: int, name: str) -> None:
    if order not in (2, 3):
        raise ValueError(f"sampler.order={order} of {name} must be 2 or 3")


def _clean(predict: Predict, x: Tensor, t: Tensor, path: Path) -> Tensor:
    """E[x0 | x_t], by the velocity."""
    return solve(predict(x, t), x, t.to(x.device), velocity_prediction, path=path)[0]


def _on(values: Tensor, x: Tensor) -> Tensor:
    """Values of the CPU, one or one for each row, in the form of x."""
    return like(values.to(x.device, torch.bool if values.dtype == torch.bool else x.dtype), x)


@dataclass(frozen=True)
class _Table:
    """Numbers of a schedule, float64 on the CPU. alpha, sigma, depth (lambda): of each level. For each step: moving, whether the level
    changes; ratio, e to the minus its length in lambda, 0 for an infinite one; length."""

    alpha: Float[Tensor, "S1 ..."]
    sigma: Float[Tensor, "S1 ..."]
    depth: Float[Tensor, "S1 ..."]
    moving: Tensor
    ratio: Float[Tensor, "S ..."]
    length: Float[Tensor, "S ..."]

    @classmethod
    def of(cls, levels: Tensor, path: Path) -> _Table:
        t = levels.detach().to("cpu", torch.float64)
        alpha, sigma = path.alpha(t).clamp_min(0), path.sigma(t).clamp_min(0)
        moving = t[1:] != t[:-1]
        one = torch.ones_like(alpha[1:])
        ratio = (alpha[:-1] * sigma[1:]) / torch.where(moving, sigma[:-1] * alpha[1:], one)
        ratio = torch.where(moving, ratio, one)
        return cls(alpha, sigma, alpha.log() - sigma.log(), moving, ratio, -ratio.log())

    def most(self, step: int, order: int) -> int:
        """How many predictions a step uses at most."""
        left = len(self.length) - step
        return order if self._finite(left + step - 1) else min(order, left)

    def moved(self, x: Tensor, past: list[Tensor], step: int, *, eta: float = 0.0, noise: Draw | None = None) -> Tensor:
        """x after a step. past: the clean predictions of this step and of those before, the latest first."""
        weights = self._weights(step, self._places(past, step), eta, exact=len(past) > 2)
        result = self._kept(x, step, eta) + sum(_on(weight, x) * one for weight, one in zip(weights, past, strict=False))
        if eta > 0 and noise is not None:
            fresh = self.sigma[step + 1] * (1 - self.ratio[step] ** (2 * eta)).sqrt()
            result = result + _on(fresh, x) * noise(step)
        return torch.where(_on(self.moving[step], x), result, x)

    def corrected(self, start: Tensor, x: Tensor, new: Tensor, past: list[Tensor], step: int) -> Tensor:
        """x after a step from `start`, now that the clean prediction at its end is known, too."""
        places = self._places(past, step)
        weights = self._weights(step, [*places, torch.ones_like(self.length[step])], 0.0, exact=len(places) > 1)
        if not self._finite(step):  # from pure noise: D is linear in the level, and both ends weigh alike
            weights = [weights[0] / 2, weights[0] / 2]
        result = self._kept(start, step, 0.0)
        result = result + sum(_on(weight, x) * one for weight, one in zip(weights, [*past[: len(places)], new], strict=True))
        return torch.where(_on(self.moving[step], x), result, x)

    def _places(self, past: list[Tensor], step: int) -> list[Tensor]:
        """Where predictions were made, in lengths of the step from its start, the latest first: those that a polynomial reaches."""
        back = [(self.depth[step - number] - self.depth[step]) / self.length[step] for number in range(1, len(past))]
        return [torch.zeros_like(self.length[step]), *(place for place in back if bool(place[self.moving[step]].isfinite().all()))]

    def _finite(self, step: int) -> bool:
        """Whether a step is of finite length for all rows that move."""
        return bool(self.length[step][self.moving[step]].isfinite().all())

    def _kept(self, x: Tensor, step: int, eta: float) -> Tensor:
        """x times how much of it a step leaves."""
        sigma = torch.where(self.moving[step], self.sigma[step], torch.ones_like(self.sigma[step]))
        return _on(self.sigma[step + 1] / sigma * self.ratio[step] ** eta, x) * x

    def _weights(self, step: int, places: list[Tensor], eta: float, *, exact: bool) -> list[Tensor]:
        """Weights of clean predictions over a step. places: where on it they are, in lengths of the step, 0 first.

        exact: the polynomial through all is integrated exactly. Else, of two, half of their difference is added, as 2M and UniPC do.
        """
        reach = (1 + eta) * self.length[step]
        whole = self.alpha[step + 1] * (1 - self.ratio[step] ** (1 + eta))
        if len(places) < 2 or not self._finite(step):
            return [whole]
        if not exact:
            half = whole / 2 / torch.where(self.moving[step], places[1], torch.ones_like(reach))
            return [whole - half, half]
        safe = torch.where(self.moving[step], reach, torch.ones_like(reach))
        points = torch.stack([torch.where(self.moving[step], place, float(k)) for k, place in enumerate(places)], -1)
        moments = [1 - (-safe).exp()]  # of u^k over the step u = 0 … 1, weighted by reach · e^(-reach (1 - u)): by parts
        for power in range(1, len(places)):
            moments.append(1 - power / safe * moments[-1])
        powers = torch.stack([points**power for power in range(len(places))], -2)
        found = torch.linalg.solve(powers, torch.stack(moments, -1))
        return [self.alpha[step + 1] * weight for weight in found.unbind(-1)]
