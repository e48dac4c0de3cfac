"""The price of a run before it starts: `sora plan cluster=…` combines plan, network, strategy and machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from sora.assembly.data import Planned
    from sora.cost.bill import Bill, Memory
    from sora.cost.hardware import Cluster
    from sora.cost.roofline import StepTime
    from sora.cost.tracing import Traced
    from sora.dit.flops import Flops
    from sora.tokens import Batch, Grid
    from sora.training.module import TrainingModule

MANY_EPOCHS = 100
FEW = 6  # blocks traced in place of a deeper network's: FSDP prefetches two ahead and two behind
PackOf = Sequence[tuple["Grid", int]]  # the clips of a pack, each with the number of its text tokens


@dataclass(frozen=True)
class Launch:
    """How a run is started. trainer: its node; the trainer is built for the cluster's size. packs: per step. checkpoints: how many exist at
    the end. fit: the run whose log gives the utilisation; None for the cluster's own."""

    cluster: Cluster
    trainer: Mapping[str, Any]
    steps: int
    packs: int
    checkpoints: int
    fit: Path | None


@dataclass(frozen=True)
class Wanted:
    """The run to price. packs: of consecutive steps of the plan, `launch.packs` per step. given: the network's channels and text width.

    budget, max_clips, text_budget: limits of a pack. pooled: width of pooled caption vectors, None without. flops: of the network. depth:
    number of its blocks. period: number of blocks after which their kinds repeat. module: makes the training module with a number of
    blocks, None for all. outline: makes the network without memory for its weights. epoch: steps of an epoch, None if it has no end.
    """

    launch: Launch
    given: Mapping[str, int]
    packs: Sequence[PackOf]
    budget: int
    max_clips: int
    text_budget: int | None
    pooled: int | None
    flops: Flops
    depth: int
    period: int
    module: Callable[[int | None], TrainingModule]
    outline: Callable[[], Any]
    epoch: float | None


def unseen_stages(planned: Planned, *, steps: int) -> list[str]:
    """A warning for a curriculum: the price covers only the first steps, which were looked at."""
    count = len(planned.plan.stages)
    if count < 2:
        return []
    last = max(part.stage for part in planned.plan.columns(steps - 1))
    seen = f"priced by the first {steps:,} steps, which are of stages 0 to {last} of 0 to {count - 1}"
    return [f"plan.curriculum: {seen}; what the others cost is told with their keys and plan.curriculum=[], or seen with a larger priced=…"]


def packs_of(planned: Planned, *, steps: int, text_tokens: int) -> list[PackOf]:
    """The packs of the first steps, clip by clip. text_tokens: assumed for a caption that is only encoded while the network trains."""
    import numpy as np

    from sora.data.loading.latents import LatentData
    from sora.tokens import Grid

    plan, found = planned.plan, []
    batches = planned.data.batches(plan) if isinstance(planned.data, LatentData) else None
    for step in range(steps):
        grids = np.concatenate([plan.clips.measured(part.rows, plan.stages[part.stage].limits).grids for part in plan.columns(step)])
        rest = iter(grids.tolist())
        for pack in plan.at(step).packs:
            words = [batches.words(item) if batches is not None else text_tokens for item in pack.items]
            found.append([(Grid(*next(rest)), count) for count in words])
    return found


def bill(wanted: Wanted) -> Bill:
    """The bill of the run."""
    from sora.cost.bill import Bill

    launch, cluster, warnings = wanted.launch, wanted.launch.cluster, list[str]()
    trainer, ranks, mesh = arranged(launch.trainer, cluster, warnings)
    packs, seen, of_step = stepped(wanted, trainer, warnings)
    costs = Costs(wanted.flops, packs)
    traced, memory = measured(wanted, seen, trainer, ranks, cluster, warnings)
    executed = costs.executed(traced, seen).reshape(-1, of_step // traced.readers, traced.readers).sum(axis=1)  # steps, readers
    beside = ranks // traced.readers  # ranks that share a reader's packs
    bf16 = trainer.precision.startswith("bf16")
    cluster, assumed = utilised(launch, bf16=bf16, ratio=float(executed.sum() * beside / costs.model.sum()))
    repeated = of_step / traced.readers / len(seen)  # weights are gathered for every pack, replicas reduced once a step
    sent = {axis: size if axis.startswith("replicate") else size * repeated for axis, size in traced.sent.items()}
    slowest = float(executed.max(axis=1).mean() / executed.mean())
    time = timed(cluster, traced, bf16=bf16, flops=float(executed.mean()), slowest=slowest, sent=sent)
    steps_seen = len(packs) / of_step
    return Bill(
        cluster=cluster,
        mesh=mesh,
        precision=trainer.precision,
        steps=launch.steps,
        numbers=traced.numbers,
        tokens=costs.tokens / steps_seen,
        clips=sum(map(len, packs)) / steps_seen,
        flops=float(costs.model.sum() / steps_seen),
        executed=float(executed.sum() * beside / steps_seen),
        memory=memory,
        sent=sent,
        time=time,
        saved=traced.saved,
        checkpoints=launch.checkpoints,
        host=traced.whole * min(cluster.per_node, ranks),
        epochs=epochs_of(wanted, of_step, warnings),
        assumed=assumed,
        warnings=warnings,
    )


def timed(cluster: Cluster, traced: Traced, *, bf16: bool, flops: float, slowest: float, sent: Mapping[str, float]) -> StepTime:
    """The time of a step. flops: executed by the mean rank. slowest: the slowest rank's over the mean. sent: a rank's bytes by axis."""
    from sora.cost.roofline import step_time

    touched = 2.0 * (traced.weights + traced.moments + traced.average) + traced.gradients
    return step_time(cluster, flops=flops, slowest=slowest, bf16=bf16, sent=sent, layout=traced.layout, touched=touched)


def utilised(launch: Launch, *, bf16: bool, ratio: float) -> tuple[Cluster, str]:
    """The cluster with the utilisation to use, and a description of its source. ratio: executed over model FLOPs."""
    cluster = launch.cluster
    if launch.fit is not None:
        cluster = replace(cluster, utilisation=fitted(launch.fit, ratio))
        source = f"fitted to {launch.fit}"
    else:
        source = "not measured; cluster.utilisation=… or fit=RUN change it"
    peak = cluster.peak(bf16=bf16)
    return cluster, f"{cluster.utilisation:.1%} of {peak / 1e12:,.0f} TFLOP/s while computing, {source}"


def kept_of(steps: int, *, every: int | None, keep: int, keep_every: int | None) -> int:
    """Number of checkpoints that exist after `steps`: the newest, and those that are kept for ever."""
    saved = {*range(every, steps + 1, every), steps} if every else {steps}
    newest = sorted(saved)[-keep:]
    return len({*newest, *(step for step in saved if keep_every and step % keep_every == 0)})


def epochs_of(wanted: Wanted, of_step: int, warnings: list[str]) -> float | None:
    """How often the run sees every clip. of_step: packs per step."""
    if wanted.epoch is None:
        return None
    steps = wanted.epoch * wanted.launch.packs / of_step
    if steps < 1:
        warnings.append(f"an epoch is {steps:.2f} of a step; make plan.packs or plan.budget smaller, or add clips")
    elif wanted.launch.steps / steps > MANY_EPOCHS:
        warnings.append(f"an epoch of {steps:,.1f} steps is short: every clip is shown {wanted.launch.steps / steps:,.0f} times")
    return wanted.launch.steps / steps


def arranged(node: Mapping[str, Any], cluster: Cluster, warnings: list[str]) -> tuple[Any, int, str]:
    """The trainer over all devices of the cluster (which is never run), its number of processes, and the words that start it."""
    from sora.config.build import build, resolve
    from sora.parallel.mesh import MeshStrategy
    from sora.training.trainers import auto_trainer, numerics

    tree = dict(node)
    if tree.get("accelerator") == "cpu":
        warnings.append(
            f"this trainer is for CPUs, and priced as if GPUs computed in {tree['precision']}; trainer=auto is for what is there"
        )
    if tree.get("precision") is None:
        tree["precision"] = numerics("gpu")["precision"]
    tree |= {"accelerator": "cpu", "threads": 0, "deterministic": False}
    ranks, said = 1, "one process"
    if "devices" in tree:
        devices = min(cluster.per_node, cluster.devices)
        tree |= {"devices": devices, "nodes": cluster.nodes}
        ranks, said = devices * cluster.nodes, f"trainer.devices={devices} trainer.nodes={cluster.nodes}"
    elif cluster.devices > 1:
        warnings.append(f"{cluster.devices - 1:,} of {cluster.devices:,} devices idle: this trainer has one process; choose trainer=auto")
    trainer = build(tree)(callbacks=[])
    if isinstance(trainer.strategy, MeshStrategy):
        said += f": {trainer.strategy.sizes}"
    if resolve(node["_target_"]) is auto_trainer:
        said = f"trainer=auto, which is trainer={'ddp' if ranks > 1 else 'gpu'} there, {said}"
    return trainer, ranks, said


def stepped(wanted: Wanted, trainer: Any, warnings: list[str]) -> tuple[list[PackOf], list[PackOf], int]:
    """The packs of whole steps, the packs of one reader to trace, and the packs per step."""
    packs, readers = shared_out(wanted.launch.packs, trainer, warnings)
    given = list(wanted.packs)
    while len(given) < packs:
        given += given
    whole = given[: len(given) // packs * packs]
    largest = max(whole, key=lambda pack: (sum(words for _, words in pack), sum(grid.t for grid, _ in pack)))
    return whole, [largest] * min(2, packs // readers), packs


def shared_out(asked: int, trainer: Any, warnings: list[str], *, crops: int = 0) -> tuple[int, int]:
    """The number of packs per step to price, at least `asked`, and the number of readers, which each have equally many.

    crops: per pack, where `plan.batch` counts the crops of a step.
    """
    from sora.parallel.mesh import MeshStrategy

    readers = 1
    if isinstance(trainer.strategy, MeshStrategy):
        readers = trainer.strategy.sizes.replicate * trainer.strategy.sizes.shard
    packs = -(-asked // readers) * readers
    if packs != asked:
        idle = f"{readers - asked % readers:,} of {readers:,} ranks" if asked < readers else "some ranks"
        warnings.append(
            f"{idle} would idle, and training refuses it: plan.packs={asked} does not divide over {readers:,}; priced as plan.packs={packs}"
            + (f" plan.batch={packs * crops}" if crops else "")
        )
    return packs, readers


class Costs:
    """FLOPs of packs. whole: the network's. model: of a training step on each pack. tokens: of all packs together."""

    def __init__(self, whole: Flops, packs: Sequence[PackOf]) -> None:
        import numpy as np

        from sora.dit.flops import TRAINING, Flops

        self._attention = Flops(products={}, meetings=whole.meetings)
        self._known: dict[tuple[int, Grid, int], int] = {}
        self.model = np.array([TRAINING * self._sum(whole, pack) for pack in packs], dtype=np.float64)
        self._pairs = np.array([self._sum(self._attention, pack) for pack in packs], dtype=np.float64)
        self.tokens = sum(grid.tokens for pack in packs for grid, _ in pack)

    def _sum(self, flops: Flops, pack: PackOf) -> int:
        total = 0
        for grid, words in pack:
            key = (id(flops), grid, words)
            if key not in self._known:
                self._known[key] = flops.clip(grid, words)
            total += self._known[key]
        return total

    def executed(self, traced: Traced, seen: Sequence[PackOf]) -> np.ndarray:
        """FLOPs that a rank executes on each pack: matrix products cover the whole budget, attention covers the clips."""
        attention = traced.attention / sum(self._sum(self._attention, pack) for pack in seen)
        return (traced.flops - traced.attention) / len(seen) + attention * self._pairs


def measured(
    wanted: Wanted, seen: Sequence[PackOf], trainer: Any, ranks: int, cluster: Cluster, warnings: list[str]
) -> tuple[Traced, Memory]:
    """A traced step, its memory, and, by a second trace with half the tokens, the number of tokens that would fill a device."""
    from sora.tokens import Grid

    budget, packs = wanted.budget, wanted.launch.packs
    found = of_any_depth(wanted, [batch_of(wanted, pack, budget) for pack in seen], trainer, ranks).summing(packs, trainer)
    half, words = budget // 2, sum(count for _, count in seen[0]) // 2
    half -= half % min(half, 64)  # so that it divides over context ranks
    part = [(Grid(1, 1, half), max(1, words))]
    smaller = of_any_depth(wanted, [batch_of(wanted, part, half)] * len(seen), trainer, ranks).summing(packs, trainer)
    slope = max(found.largest - smaller.largest, found.kept - smaller.kept, 1) / (budget - half)
    fits = max(0, int(budget + (cluster.room - found.largest) / slope) // 64 * 64)
    if found.largest > cluster.room:
        warnings.append(
            f"plan.budget={budget:,} does not fit: it needs {found.largest / 2**30:.1f} GiB of {cluster.room / 2**30:.1f} GiB; "
            + (f"at most {fits:,} tokens do" if fits else "shard the weights over more devices (trainer=fsdp), or choose a smaller dit")
        )
    if fits < (longest := max(grid.tokens for pack in wanted.packs for grid, _ in pack)):
        warnings.append(
            f"the longest clip has {longest:,} tokens and {fits:,} fit: cut clips with plan.frames, leave them out with plan.area, "
            "compute more again (recompute=full), or share packs (trainer=cp)"
        )
    return found, memory_of(found, room=cluster.room, budget=fits, counted="tokens of a pack")


def memory_of(traced: Traced, *, room: float, budget: int, counted: str) -> Memory:
    """The memory of a traced step, with the available `room` and the `budget` that would fill it."""
    from sora.cost.bill import Memory

    names = ("weights", "average", "moments", "gradients", "kept", "largest")
    return Memory(**{name: getattr(traced, name) for name in names}, room=room, budget=budget, counted=counted)


def of_any_depth(wanted: Wanted, batches: Sequence[Batch], trainer: Any, ranks: int) -> Traced:
    """A traced step. If blocks repeat with a short period, a few are traced, and the cost of each further period is extrapolated."""
    from sora.cost.tracing import traced

    def at(depth: int | None) -> Traced:
        return traced(lambda: wanted.module(depth), batches, trainer=trainer, ranks=ranks, gpu=True)

    period = math.lcm(2, wanted.period)
    first = FEW + (wanted.depth - FEW) % period
    if wanted.depth <= first + period:
        return at(None)
    kinds = [(type(block), *(value.shape for value in block.parameters())) for block in wanted.outline().blocks]
    if kinds[period:] != kinds[:-period]:
        return at(None)
    return at(first).deeper(at(first + period), (wanted.depth - first) // period)


def batch_of(wanted: Wanted, clips: PackOf, budget: int) -> Batch:
    """A pack of zeros."""
    import torch

    from sora.patches.packing import pack
    from sora.text.packing import pack_text
    from sora.tokens import Batch

    grids = [grid for grid, _ in clips]
    patches = [torch.zeros(grid.tokens, wanted.given["patch_channels"]) for grid in grids]
    seconds = [torch.zeros(grid.t) for grid in grids]
    tokens = pack(patches, grids, seconds=seconds, budget=budget, max_clips=wanted.max_clips)
    states = [torch.zeros(words, wanted.given["text_width"]) for _, words in clips]
    text = pack_text(states, budget=wanted.text_budget, max_clips=wanted.max_clips)
    if wanted.pooled:
        text = replace(text, pooled=torch.zeros(text.segments.count, wanted.pooled))
    numbers = tuple(range(len(clips)))
    return Batch(tokens, text, torch.zeros(budget, dtype=torch.bool), sample_ids=numbers, epochs=(0,) * len(clips))


def fitted(run: Path, ratio: float) -> float:
    """The share of the peak FLOP/s that a run reached while it did not wait for data: the median of its log, without the first line.

    ratio: executed over model FLOPs; the log counts the latter.

    Raises:
        ValueError: the log does not record it.
    """
    from statistics import median

    from sora.runs.jsonl import MEASURED, read

    path = run / "metrics.jsonl"
    rows = read(path, MEASURED)
    reached = [row["mfu"] / (1 - row["data_share"]) for row in rows if row.get("mfu") and row["data_share"] < 1]
    if len(reached) < 2:
        raise ValueError(f"fit={run}: {path} has fewer than two lines with mfu; name a run of this network on such a device")
    return min(1.0, median(reached[1:]) * ratio)
