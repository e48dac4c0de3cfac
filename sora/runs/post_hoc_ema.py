"""Post-hoc EMA: weight averages under any power-function profile, computed after training from stored averages (Karras et al. 2024, section
3).

A profile with exponent gamma that ends at update t gives the weights of update s the density (gamma + 1) s^gamma / t^(gamma + 1). A run
with ema=post_hoc stores the averages under two profiles in every checkpoint, and keeps those of removed checkpoints in RUN/snapshots.
Another profile is a least-squares combination of the stored ones, and its average is the same combination of their averages.
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

WIDEST = 12**-0.5  # the profile that weighs all updates alike
LARGEST_MISS = 0.3  # share of a profile that a combination may miss


@dataclass(frozen=True)
class Profile:
    """A power-function profile that ends at `updates` and has a standard deviation of `width` times `updates`."""

    updates: int
    width: float


def gamma_of(width: float) -> float:
    """The exponent of the profile whose standard deviation is `width` times its length; 0.10 -> 6.94, 0.05 -> 16.97.

    It is the largest root of the cubic width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, appendix C).

    Raises:
        ValueError: no profile has this width.
    """
    if not 0 < width <= WIDEST + 1e-9:
        raise ValueError(f"no average has a relative width of {width}: it lies above 0, and at {WIDEST:.4f} all updates weigh alike")
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return max(0.0, float(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max()))


def overlaps(one: Sequence[Profile], other: Sequence[Profile]) -> Float[np.ndarray, "A B"]:
    """The integral over time of the product of each profile in `one` with each in `other`."""
    t, g = _columns(one)
    u, h = (values[None] for values in _columns(other))
    t, g = t[:, None], g[:, None]
    first = np.minimum(t, u)
    return (g + 1) * (h + 1) / ((g + h + 1) * first) * (first / t) ** (g + 1) * (first / u) ** (h + 1)


def _columns(profiles: Sequence[Profile]) -> tuple[Float[np.ndarray, "A"], Float[np.ndarray, "A"]]:
    return np.array([float(one.updates) for one in profiles]), np.array([gamma_of(one.width) for one in profiles])


def coefficients(kept: Sequence[Profile], wanted: Profile) -> tuple[Float[np.ndarray, "A"], float]:
    """The factors of the averages under the `kept` profiles whose sum approximates the average under `wanted`, and the share of it that is
    missed.

    Least squares under the constraint that the factors sum to one, so that weights which never moved do not change.
    """
    products, towards = overlaps(kept, kept), overlaps(kept, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(products))  # to unit norm: else early, narrow profiles, whose norms are large, drown the rest
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

    source: the checkpoint, in the folder of its run. The run's snapshots and older checkpoints are used too; damaged ones are reported and
    passed over.

    Raises:
        ValueError: the checkpoint has no profiles or is damaged, or the stored profiles cannot be combined to this width.
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
    """The combination of one tensor of several checkpoints, summed in fp64 because the factors may be large and of both signs."""
    parts = (state.tensors[kind][name].double().mul_(float(share)) for (state, kind), share in zip(terms, shares, strict=True))
    return reduce(Tensor.add_, parts).to(torch.float32)


def older(source: Path) -> list[Path]:
    """The snapshots and checkpoints with profiles that the run of checkpoint `source` stored before it, by step."""
    last = checkpoint.step_of(source) or 0
    by_step: dict[int, Path] = {}
    for path in (*checkpoint.listed(source.parent.parent / checkpoint.SNAPSHOTS), *checkpoint.listed(source.parent)):
        step = checkpoint.step_of(path) or 0
        if 0 < step < last and (path / checkpoint.STATE).is_file() and checkpoint.profiles(path):
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]
