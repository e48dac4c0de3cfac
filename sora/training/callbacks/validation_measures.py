"""Measures for validation while training: the loss of held-out clips, and videos of held-out captions. All ranks share the work."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from sora.data.plan.listing import Listing
from sora.diffusion.validation_loss import HeldOutLoss, Losses, LossTable
from sora.gate.files import below
from sora.generation.generator import Generator as Maker
from sora.generation.generator import Request
from sora.metrics.statistics import mean_interval, paired_change
from sora.parallel.mesh import seat
from sora.system import distributed as ranks
from sora.tokens import Batch, Grid
from sora.training.callbacks.validation import Figures
from sora.training.diffusion_task import DiffusionTask
from sora.training.module import TrainingModule

DOORS = ("predict", "read")  # methods of a diffusion task that gather sharded weights when called


def places(module: TrainingModule) -> tuple[int, int, int]:
    """(index, number, ranks each) of the groups that measure different clips: ranks that share matrix products are one group.

    Ranks that share the tokens of packs in training do not here, because a clip is measured whole.
    """
    groups = seat(module.trainer).averaged
    each = module.trainer.world_size // groups
    return module.global_rank // each, groups, each


def opened(module: TrainingModule) -> DiffusionTask:
    """The task, with its network and text module usable outside a training step, sharded or not."""
    task = module.task
    assert isinstance(task, DiffusionTask)
    if isinstance(task, FSDPModule) and "predict" not in vars(task):
        for name in DOORS:
            register_fsdp_forward_method(task, name)
    return task


class HeldOut:
    """The held-out loss, with its change since the last evaluation, clip by clip.

    read: returns the packs of a step of the listing. shape: converts a grid to frames and pixels, for the figures. Clips stay in memory as
    patches, each on one rank.
    """

    def __init__(
        self, loss: HeldOutLoss, listing: Listing, *, read: Callable[[int], Sequence[Any]], shape: Callable[[Grid], Mapping[str, int]]
    ) -> None:
        self._loss, self._listing, self._read, self._shape = loss, listing, read, shape
        self._batches: list[Batch] = []
        self._counted = 0
        self._names = {sample: listing.clips.key(row) for sample, row in zip(listing.samples, listing.rows.tolist(), strict=True)}
        self._before: dict[str, dict[str, float]] = {}

    def begin(self, module: TrainingModule, earlier: Sequence[Mapping[str, Any]]) -> None:
        task = opened(module)
        rank, count, _ = places(module)
        mine = list(range(len(self._listing)))[rank::count]
        self._counted = len(mine)
        most = -(-len(self._listing) // count)
        # ranks with sharded weights must call the network equally often; what is measured twice counts once
        for step in [*mine, *([0] * (most - len(mine)))]:
            self._batches += [pack if task.encode is None else task.encode(pack, module.device).to("cpu") for pack in self._read(step)]
        for line in earlier:
            self._before[line["weights"]] = line.get("clips", {})

    def work(self, module: TrainingModule, weights: str) -> Generator[float, None, Figures]:
        task, tally = opened(module), LossTable(self._listing.samples, self._listing.grids, self._loss.levels)
        passes = len(self._batches) * len(self._loss.levels) * self._loss.draws
        done = 0
        for number, batch in enumerate(self._batches):
            here = batch.to(module.device)
            for piece in self._loss.pieces(task.predict, task.read, [here]):
                if number < self._counted:
                    tally.add(piece, batch.sample_ids)
                done += 1
                yield done / passes
        tally.sums = ranks.summed(tally.sums.to(module.device)).cpu()
        return self._figures(tally.losses(), weights)

    def _figures(self, losses: Losses, weights: str) -> Figures:
        now = {self._names[sample]: value for sample, value in zip(losses.samples, losses.clips.tolist(), strict=True)}
        before, self._before[weights] = self._before.get(weights, {}), now
        return {**loss_figures(losses, before=before, now=now), "by_shape": shape_rows(losses, self._shape), "clips": now}


def loss_figures(losses: Losses, *, before: Mapping[str, float], now: Mapping[str, float]) -> Figures:
    """The mean over clips with its 95 % interval, the loss at each level, and the change since `before` on clips in both.

    loss_power: the probability that this many clips show a change of 1 %. loss_detectable: the change that they show with probability 80 %.
    """
    mean, low, high = mean_interval(losses.clips)
    found: Figures = {"loss": mean, "loss_low": low, "loss_high": high, "loss_clips": len(losses.samples)}
    shared = [name for name in now if name in before]
    if len(shared) >= 3:
        one, two = (torch.tensor([side[name] for name in shared], dtype=torch.float64) for side in (before, now))
        change = paired_change(one, two)
        found |= {"loss_change": change.change, "loss_change_low": change.low, "loss_change_high": change.high}
        found |= {"loss_power": change.power, "loss_detectable": change.detectable}
    found = {name: value for name, value in found.items() if math.isfinite(value)}  # a single clip has no interval
    return {**found, "by_level": {f"{level:.4g}": value for level, value in losses.by_level().items()}}


def shape_rows(losses: Losses, shape: Callable[[Grid], Mapping[str, int]]) -> list[dict[str, Any]]:
    """For each size and length of clips: their number, their mean loss, and the mean at each level."""
    rows = []
    for grid, count, values in losses.by_shape():
        rows.append({**shape(grid), "clips": count, "loss": sum(values) / len(values), "levels": values})
    return rows


class Samples:
    """Videos of fixed prompts with fixed seeds, and metrics of them.

    make: makes a generator for a module. keep: writes clips of a step to a folder and returns the videos' paths. score: computes metrics of
    all clips, on the first rank only; None for none. folder: of the run. shown: number of clips that are written.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        make: Callable[[TrainingModule], Maker],
        keep: Callable[[Path, Sequence[Request], Sequence[Tensor]], Sequence[Path]],
        score: Callable[[Sequence[Tensor]], Mapping[str, float]] | None,
        folder: Path,
        shown: int,
    ) -> None:
        self._requests, self._make, self._keep, self._score = list(requests), make, keep, score
        self._folder, self._shown = folder, shown
        self._maker: Maker | None = None

    def begin(self, module: TrainingModule, earlier: Sequence[Mapping[str, Any]]) -> None:
        opened(module)

    def work(self, module: TrainingModule, weights: str) -> Generator[float, None, Figures]:
        self._maker = self._maker or self._make(module)
        turns = in_turns(self._requests, self._maker, ranks=places(module)[1])
        clips: dict[int, Tensor] = {}
        for done, turn in enumerate(turns, 1):
            clips |= self._made(self._maker, turn, module)
            yield done / len(turns)
        whole = [clips[number] for number in range(len(self._requests))]
        figures: Figures = {}
        if module.global_rank == 0:
            place = below(self._folder, "samples", f"step-{module.counters.step:08d}-{weights}")
            paths = self._keep(place, self._requests[: self._shown], whole[: self._shown])
            figures["videos"] = [str(path.relative_to(self._folder)) for path in paths]
            figures |= dict(self._score(whole)) if self._score is not None else {}
        return figures

    def _made(self, maker: Maker, turn: Sequence[Sequence[int]], module: TrainingModule) -> dict[int, Tensor]:
        """The clips of one turn, from all ranks. turn: for each rank, equally many indices of requests of one shape."""
        rank, _, each = places(module)
        mine = maker.generate([self._requests[number] for number in turn[rank]])
        everyone = ranks.gathered(torch.stack(mine).to(module.device))[::each]
        return {
            number: clip.cpu() for numbers, found in zip(turn, everyone, strict=True) for number, clip in zip(numbers, found, strict=True)
        }


def in_turns(requests: Sequence[Request], maker: Maker, *, ranks: int) -> list[list[list[int]]]:
    """Indices of requests, by turn and rank. In a turn all ranks have equally many, of one shape; duplicates are kept once.

    So ranks with shards of one network call it equally often, and their results have one shape.
    """
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for number, request in enumerate(requests):
        shapes.setdefault((request.frames, request.height, request.width), []).append(number)
    turns = []
    for numbers in shapes.values():
        room = max(1, maker.token_budget // maker.plan(requests[numbers[0]]).grid.tokens)
        for start in range(0, len(numbers), ranks * room):
            some = numbers[start : start + ranks * room]
            each = -(-len(some) // ranks)
            filled = some + [some[0]] * (each * ranks - len(some))
            turns.append([filled[rank * each : (rank + 1) * each] for rank in range(ranks)])
    return turns
