"""Figures of a plan before any training: fill, balance between ranks, steps per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int

from sora.data.plan.plan import TokenPlan
from sora.system.terminal import counted

_SHOWN = 6  # sizes of clips that are listed


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """The figures of one stage. clips: how many can be drawn. frames_kept: the share of their frames that is trained on.

    steps: of an epoch; where datasets or images are mixed by weights there is no epoch: then of the windows examined, and whole is False.
    fill: clips' tokens over all tokens of packs. balance[R]: the mean over the maximum of the R ranks' costs in a step. useful[R]: the
    clips' cost over what R ranks pay, padding and waiting included. tail: packs that the last step of an epoch takes from the next epoch.
    lengths: the least, median and most frames that are trained on of a clip. sizes: shares of the clips by columns x rows, the commonest
    first. Both lengths and sizes are in the plan's units, which are latent ones where clips are encoded beforehand.
    """

    clips: int
    skipped: dict[str, int]
    cut: int
    frames_kept: float
    whole: bool
    steps: float
    samples_per_step: float
    tokens_per_step: tuple[int, float, int]
    fill: float
    largest_over_smallest: float
    balance: dict[int, float]
    useful: dict[int, float]
    tail: int
    lengths: tuple[int, float, int]
    sizes: dict[str, float]


def figures(plan: TokenPlan, *, ranks: Sequence[int], windows: int | None, stage: int = 0) -> PlanFigures:
    """The figures of a stage's first epoch, or of its first `windows` windows (None: of the whole epoch).

    Raises:
        ValueError: a number of ranks does not divide the packs of a step.
    """
    for count in ranks:
        if count < 1 or plan.packs % count:
            raise ValueError(f"ranks={list(ranks)}: a step of plan.packs={plan.packs} does not divide over {counted(count, 'rank')}")
    alone = plan.alone(stage)
    epoch = alone.windows_of_epoch()
    looked = min(epoch if epoch is not None else 1, windows or max(1, epoch or 1))
    packs = alone.packs_of_windows(looked)
    steps = max(1, packs // plan.packs)
    paid, tokens, useful, samples = [], [], 0.0, 0
    for step in range(steps):
        parts = alone.columns(step)
        paid.append(np.concatenate([part.paid for part in parts]))
        tokens.append(sum(int(part.tokens.sum()) for part in parts))
        useful += sum(float(plan.cost.of(part.tokens).sum()) for part in parts)
        samples += sum(len(part.rows) for part in parts)
    costs = np.stack(paid)
    most = {count: costs.reshape(steps, -1, count).sum(axis=1).max(axis=1).sum() * count for count in ranks}
    mixture, rows = alone.mixtures[0], _drawn_rows(alone, packs)
    taken = alone.clips.taken(rows, alone.stages[0].limits)
    whole = epoch is not None and looked == epoch
    return PlanFigures(
        clips=mixture.count,
        skipped={reason: count for reason, count in mixture.skipped.items() if count},
        cut=sum(source.cut for source in mixture.sources),
        frames_kept=_kept(alone, rows),
        whole=whole,
        steps=packs / plan.packs if whole or epoch is None else sum(source.tokens for source in mixture.sources) / float(np.mean(tokens)),
        samples_per_step=samples / steps,
        tokens_per_step=(min(tokens), float(np.mean(tokens)), max(tokens)),
        fill=sum(tokens) / (steps * plan.packs * plan.budget),
        largest_over_smallest=float(np.median(costs.max(axis=1) / costs.min(axis=1))),
        balance={count: float(costs.sum() / most[count]) for count in ranks},
        useful={count: float(useful / most[count]) for count in ranks},
        tail=-packs % plan.packs if whole else 0,
        lengths=(int(taken[:, 0].min()), float(np.median(taken[:, 0])), int(taken[:, 0].max())),
        sizes=_sizes(taken[:, 1:]),
    )


def _drawn_rows(plan: TokenPlan, packs: int) -> np.ndarray:
    parts = plan.packs_between(0, min(packs, plan.packs * plan.window))
    return np.concatenate([part.rows for part in parts])


def _sizes(taken: Int[np.ndarray, "n 2"]) -> dict[str, float]:
    sizes, counts = np.unique(taken, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {f"{sizes[place][1]}x{sizes[place][0]}": float(counts[place] / len(taken)) for place in order.tolist()}


def _kept(plan: TokenPlan, rows: np.ndarray) -> float:
    had = plan.clips.frames(rows)
    return float(plan.clips.taken(rows, plan.stages[0].limits)[:, 0].sum() / had.sum())


def lines(plan: TokenPlan, found: PlanFigures, *, stage: int = 0) -> list[str]:
    """The figures of a stage as lines of text."""
    low, mean, high = found.tokens_per_step
    looked = "steps an epoch  " if plan.windows_of_epoch(stage) is not None else "steps looked at "
    told = [
        f"clips            {found.clips:,} of {plan.clips.starts[-1]:,}" + ("" if found.whole else "   (figures below are of a part)"),
        *(f"left out         {count:,}: {reason}" for reason, count in found.skipped.items()),
        f"cut              {counted(found.cut, 'clip')} to {counted(plan.stages[stage].frames or 0, 'frame')}; "
        f"{found.frames_kept:.1%} of all frames kept"
        if found.cut
        else f"frames kept      {_share(found.frames_kept)}",
        f"a clip           {found.lengths[0]:,} to {found.lengths[2]:,} frames, half of them {found.lengths[1]:,.0f} or more",
        f"sizes            {_told(found.sizes)}",
        f"{looked} {found.steps:,.1f} of {counted(plan.packs, 'pack')} of {plan.budget:,} tokens",
        f"a step           {found.samples_per_step:,.1f} clips, {mean:,.0f} tokens ({low:,} to {high:,})",
        f"fill             {found.fill:.2%} of the token budget; {1 - found.fill:.2%} is padding",
        f"packs of a step  the largest costs {found.largest_over_smallest:.3f} times the smallest (median)",
        *(
            f"{f'{count:>5} rank' + 's' * (count > 1):<17}{1 - balance:.2%} waiting for the slowest; "
            f"{found.useful[count]:.2%} of what is paid is useful"
            for count, balance in found.balance.items()
        ),
        f"tail             the last step of an epoch takes {found.tail} of {plan.packs} packs from the next" if found.tail else "",
    ]
    return [line for line in told if line]


def _share(kept: float) -> str:
    """A text for the share of frames kept without a limit: frames at a clip's end that fill no latent frame or patch are not trained on."""
    return "100%" if kept == 1 else f"{kept:.2%}; the rest does not fill a latent frame of the VAE, or a patch"


def _told(sizes: dict[str, float]) -> str:
    """A text of the commonest sizes and the number of others."""
    shown = ", ".join(f"{size} {share:.0%}" for size, share in islice(sizes.items(), _SHOWN))
    return shown + (f" and {len(sizes) - _SHOWN} others" if len(sizes) > _SHOWN else "")
