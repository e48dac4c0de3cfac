"""Averages of the weights under any power-function profile, made after training of those that were kept (Karras et al. 2024, section 3).

A profile of exponent gamma that ends at update t weighs the weights of update s by (gamma + 1) s^gamma / t^(gamma + 1). A run with
ema=post_hoc keeps the averages of two of them in every checkpoint, and in RUN/snapshots those of checkpoints that went. Their profiles
combine to another by least squares, and so do the averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sora.runs import checkpoint
from sora.runs.checkpoint import TrainingState
from sora.system.terminal import counted

WIDEST = 12**-0.5  # of the profile that weighs all updates alike
LARGEST_MISS = 0.3  # share of a profile that may be missed before it is another one


@dataclass(frozen=True)
class Profile:
    """A power-function profile: it ends at `updates`, and its standard deviation is `width` of that."""

    updates: int
    width: float


def gamma_of(width: float) -> float:
    """The exponent of the profile whose standard deviation is `width` of the training so far; 0.10 -> 6.94, 0.05 -> 16.97.

    width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic of which the largest root is meant (Karras et al. 2024, appendix C).

    Raises:
        ValueError: no such profile has this width.
    """
    if not 0 < width <= WIDEST + 1e-9:
        raise ValueError(f"no average has a relative width of {width}: it lies above 0, and at {WIDEST:.4f} all updates weigh alike")
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return max(0.0, float(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max()))


def overlaps(one: Sequence[Profile], other: Sequence[Profile]) -> Float[np.ndarray, "A B"]:
    """The integral of the product of each of `one` with each of `other`, over all time."""
    t, g = _columns(one)
    u, h = (values[None] for values in _columns(other))
    t, g = t[:, None], g[:, None]
    first = np.minimum(t, u)
    return (g + 1) * (h + 1) / ((g + h + 1) * first) * (first / t) ** (g + 1) * (first / u) ** (h + 1)


def _columns(profiles: Sequence[Profile]) -> tuple[Float[np.ndarray, "A"], Float[np.ndarray, "A"]]:
    return np.array([float(one.updates) for one in profiles]), np.array([gamma_of(one.width) for one in profiles])


def coefficients(kept: Sequence[Profile], wanted: Profile) -> tuple[Float[np.ndarray, "A"], float]:
    """What to multiply the averages under `kept` profiles with so that their sum is the one under `wanted`; and the share it misses.

    Least squares under the condition that they sum to one, so that weights which never moved stay what they are.
    """
    products, towards = overlaps(kept, kept), overlaps(kept, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(products))  # all profiles of one length: else the early, narrow ones drown the rest
    count = len(kept)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products * scale[:, None] * scale
    system[:count, count] = system[count, :count] = scale
    found = np.linalg.lstsq(system, np.append(towards * scale, 1.0), rcond=1e-12)[0][:count] * scale
    own = overlaps([wanted], [wanted])[0, 0]
    missed = own - 2 * found @ towards + found @ products @ found
    return found, float(np.sqrt(max(0.0, missed) / own))


def averaged(source: Path, *, width: float, report: Callable[[str], object] = print) -> dict[str, Tensor]:
    """The weights averaged under the profile of relative `width` that ends at a checkpoint, in fp32 on the host, by parameter.

    source: the checkpoint, in the folder of its run, whose snapshots and older checkpoints are used too; damaged ones are passed over by
    name, through `report`.

    Raises:
        ValueError: the checkpoint has no profiles or is damaged, or `width` cannot be made of what was kept.
    """
    own = checkpoint.profiles(source)
    if not own:
        raise ValueError(
            f"{source} holds no profiles to make an average of relative width {width} of; train with ema=post_hoc, or choose ema=own"
        )
    ends = checkpoint.load(source, only=own)
    states, passed = [ends], source.parent.parent
    for path in older(source):
        try:
            states.append(checkpoint.load(path, only=checkpoint.profiles(path)))
        except (ValueError, OSError) as error:
            report(f"passed over a damaged snapshot: {error}")
    terms = [(state, kind, Profile(updates_of(state), width)) for state in states for kind, width in state.facts["profiles"].items()]
    terms = [term for term in terms if term[2].updates > 0]
    if not terms:
        raise ValueError(f"{source} is from before the first step, so there is nothing to average; choose ema=last")
    shares, missed = coefficients([profile for _, _, profile in terms], Profile(updates_of(ends), width))
    if missed > LARGEST_MISS:
        raise ValueError(
            f"an average of relative width {width} cannot be made of what {passed} kept at {counted(len(states), 'step')}: {missed:.0%} of "
            f"its profile would be missed; ask for one nearer to {' or '.join(map(str, own.values()))}"
        )
    report(
        f"an average of relative width {width} out of {counted(len(states), 'step')} with averages; {missed:.1%} of its profile is missed"
    )
    return {name: _combined(name, [(state, kind) for state, kind, _ in terms], shares) for name in ends.tensors["ema"]}


def updates_of(state: TrainingState) -> int:
    return state.facts["counters"]["updates"]


def _combined(name: str, terms: Sequence[tuple[TrainingState, str]], shares: Float[np.ndarray, "A"]) -> Tensor:
    """One tensor at a time, summed in fp64: the shares may be large and of both signs."""
    parts = (state.tensors[kind][name].double().mul_(float(share)) for (state, kind), share in zip(terms, shares, strict=True))
    return reduce(Tensor.add_, parts).to(torch.float32)


def older(source: Path) -> list[Path]:
    """The snapshots and checkpoints with profiles of a run from before its checkpoint `source`, by step."""
    last = checkpoint.step_of(source) or 0
    by_step: dict[int, Path] = {}
    for path in (*checkpoint.listed(source.parent.parent / checkpoint.SNAPSHOTS), *checkpoint.listed(source.parent)):
        step = checkpoint.step_of(path) or 0
        if 0 < step < last and (path / checkpoint.STATE).is_file() and checkpoint.profiles(path):
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]
