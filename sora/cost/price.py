"""The price of a run before it is launched: `sora plan cluster=…` puts plan, network, strategy and machines together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from sora.assembly.data import Planned
    from sora.cost.bill import Bill, Memory
    from sora.cost.hardware import Cluster
    from sora.cost.roofline import StepTime
    from sora.cost.tracing import Traced
    from sora.dit.flops import Flops
    from sora.tokens import Batch, Grid

MANY_EPOCHS = 100
FEW = 6  # blocks of a network that is traced in place of a deeper one: FSDP works two ahead and two behind
PackOf = Sequence[tuple["Grid", int]]  # the clips of a pack, each with the text tokens of its caption


@dataclass(frozen=True)
class Wanted:
    """What is to be priced. packs: of steps of the plan, in order, `plan.packs` of them each. given: the network's channels and text width.

    text: makes the module that captions go through. longest: tokens of the longest clip. epoch: steps of one, None where there is none.
    """

    config: DictConfig
    given: Mapping[str, int]
    packs: Sequence[PackOf]
    text: Callable[[], Any]
    longest: int
    epoch: float | None


def priced(config: DictConfig, planned: Planned, *, epoch: float | None) -> Bill:
    """Of a run on a plan. epoch: its steps."""
    from sora.vae import artefact

    channels = planned.patchifier.channels(artefact.read_card(planned.vae)["settings"]["latent_channels"])
    steps = max(1, config.priced // planned.plan.packs)
    packs = packs_of(planned, steps=steps, text_tokens=config.text.get("max_tokens", 1))
    found = bill(
        Wanted(
            config=config,
            given={"patch_channels": channels, "text_width": planned.encoder.width},
            packs=packs,
            text=planned.encoder.text_module,
            longest=max(grid.tokens for pack in packs for grid, _ in pack),
            epoch=epoch,
        )
    )
    online = "data=videos: the VAE and the text encoder work while the network trains; what they hold and take is not in this price"
    return replace(found, warnings=[*found.warnings, *unseen_stages(planned, steps=steps), *([online] if planned.online else [])])


def unseen_stages(planned: Planned, *, steps: int) -> list[str]:
    """What is to be said of a curriculum: a price is of the steps that were looked at, the first ones."""
    count = len(planned.plan.stages)
    if count < 2:
        return []
    last = max(part.stage for part in planned.plan.columns(steps - 1))
    seen = f"priced by the first {steps:,} steps, which are of stages 0 to {last} of 0 to {count - 1}"
    return [f"plan.curriculum: {seen}; what the others cost is told with their keys and plan.curriculum=[], or seen with a larger priced=…"]


def packs_of(planned: Planned, *, steps: int, text_tokens: int) -> list[PackOf]:
    """The packs of the first steps, clip by clip. text_tokens: of a caption that is encoded only while the network trains."""
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
    """Of a run on packs as `wanted` has them."""
    from sora.config.build import build
    from sora.cost.bill import Bill

    config, warnings = wanted.config, list[str]()
    cluster: Cluster = build(config.cluster)
    trainer, ranks, mesh = arranged(config, cluster, warnings)
    packs, seen, of_step = stepped(wanted, trainer, warnings)
    costs = Costs(config, wanted, packs)
    traced, memory = measured(wanted, seen, trainer, ranks, cluster, warnings)
    executed = costs.executed(traced, seen).reshape(-1, of_step // traced.readers, traced.readers).sum(axis=1)  # steps, readers
    beside = ranks // traced.readers  # ranks that share a reader's packs, each with its part
    bf16 = trainer.precision.startswith("bf16")
    cluster, assumed = utilised(config, cluster, bf16=bf16, ratio=float(executed.sum() * beside / costs.model.sum()))
    repeated = of_step / traced.readers / len(seen)  # weights are gathered for every pack, and copies made equal once a step
    sent = {axis: size if axis.startswith("replicate") else size * repeated for axis, size in traced.sent.items()}
    slowest = float(executed.max(axis=1).mean() / executed.mean())
    time = timed(cluster, traced, bf16=bf16, flops=float(executed.mean()), slowest=slowest, sent=sent)
    steps_seen = len(packs) / of_step
    return Bill(
        cluster=cluster,
        mesh=mesh,
        precision=trainer.precision,
        steps=config.steps,
        numbers=traced.numbers,
        tokens=costs.tokens / steps_seen,
        clips=sum(map(len, packs)) / steps_seen,
        flops=float(costs.model.sum() / steps_seen),
        executed=float(executed.sum() * beside / steps_seen),
        memory=memory,
        sent=sent,
        time=time,
        saved=traced.saved,
        checkpoints=kept_of(config),
        host=traced.whole * min(cluster.per_node, ranks),
        epochs=epochs_of(wanted, of_step, warnings),
        assumed=assumed,
        warnings=warnings,
    )


def timed(cluster: Cluster, traced: Traced, *, bf16: bool, flops: float, slowest: float, sent: Mapping[str, float]) -> StepTime:
    """Of a step in which the mean rank executes `flops`, the slowest so many times more, and each sends so much by axis."""
    from sora.cost.roofline import step_time

    touched = 2.0 * (traced.weights + traced.moments + traced.average) + traced.gradients
    return step_time(cluster, flops=flops, slowest=slowest, bf16=bf16, sent=sent, layout=traced.layout, touched=touched)


def utilised(config: DictConfig, cluster: Cluster, *, bf16: bool, ratio: float) -> tuple[Cluster, str]:
    """The cluster with the utilisation that holds, and where that is from. ratio: of executed operations to the model's."""
    if config.fit is not None:
        cluster = replace(cluster, utilisation=fitted(Path(config.fit), ratio))
        source = f"fitted to {config.fit}"
    else:
        source = "not measured; cluster.utilisation=… or fit=RUN change it"
    peak = cluster.peak(bf16=bf16)
    return cluster, f"{cluster.utilisation:.1%} of {peak / 1e12:,.0f} TFLOP/s while computing, {source}"


def kept_of(config: DictConfig) -> int:
    """Checkpoints that lie there at the end: the newest, and those that stay for ever."""
    every, steps = config.checkpoint.every, config.steps
    saved = {*range(every, steps + 1, every), steps} if every else {steps}
    newest = sorted(saved)[-config.checkpoint.keep :]
    return len({*newest, *(step for step in saved if config.checkpoint.keep_every and step % config.checkpoint.keep_every == 0)})


def epochs_of(wanted: Wanted, of_step: int, warnings: list[str]) -> float | None:
    """How often the run sees every clip. of_step: packs."""
    if wanted.epoch is None:
        return None
    steps = wanted.epoch * wanted.config.plan.packs / of_step
    if steps < 1:
        warnings.append(f"an epoch is {steps:.2f} of a step; make plan.packs or plan.budget smaller, or add clips")
    elif wanted.config.steps / steps > MANY_EPOCHS:
        warnings.append(f"an epoch of {steps:,.1f} steps is short: every clip is shown {wanted.config.steps / steps:,.0f} times")
    return wanted.config.steps / steps


def arranged(config: DictConfig, cluster: Cluster, warnings: list[str]) -> tuple[Any, int, str]:
    """A trainer over all devices of the cluster, which is never run, how many processes it has, and the words that start the same."""
    from sora.config.build import build, plain, resolve
    from sora.parallel.mesh import MeshStrategy
    from sora.training.trainers import auto_trainer, numerics

    tree = plain(config.trainer)
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
    if resolve(config.trainer._target_) is auto_trainer:
        said = f"trainer=auto, which is trainer={'ddp' if ranks > 1 else 'gpu'} there, {said}"
    return trainer, ranks, said


def stepped(wanted: Wanted, trainer: Any, warnings: list[str]) -> tuple[list[PackOf], list[PackOf], int]:
    """Whole steps of packs, the packs of one reader that are traced, and how many packs a step has."""
    packs, readers = shared_out(wanted.config.plan.packs, trainer, warnings)
    given = list(wanted.packs)
    while len(given) < packs:
        given += given
    whole = given[: len(given) // packs * packs]
    largest = max(whole, key=lambda pack: (sum(words for _, words in pack), sum(grid.t for grid, _ in pack)))
    return whole, [largest] * min(2, packs // readers), packs


def shared_out(asked: int, trainer: Any, warnings: list[str], *, crops: int = 0) -> tuple[int, int]:
    """How many packs a step is priced with, at least the `asked` ones, and how many readers have as many of them each.

    crops: of a pack, where `plan.batch` counts those of a step.
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
    """Operations of packs. model: of a training step on each pack; tokens: of all."""

    def __init__(self, config: DictConfig, wanted: Wanted, packs: Sequence[PackOf]) -> None:
        import numpy as np

        from sora.assembly.network import flops_of
        from sora.dit.flops import TRAINING, Flops

        whole = flops_of(config.dit, **wanted.given)
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
        """Of a rank on each pack: products are of the budget, whatever fills it; attention is of the clips."""
        attention = traced.attention / sum(self._sum(self._attention, pack) for pack in seen)
        return (traced.flops - traced.attention) / len(seen) + attention * self._pairs


def measured(
    wanted: Wanted, seen: Sequence[PackOf], trainer: Any, ranks: int, cluster: Cluster, warnings: list[str]
) -> tuple[Traced, Memory]:
    """A traced step, its memory, and from a second one on half the tokens how many would fill a device."""
    from sora.tokens import Grid

    budget, packs = wanted.config.plan.budget, wanted.config.plan.packs
    found = of_any_depth(wanted, [batch_of(wanted, pack, budget) for pack in seen], trainer, ranks).summing(packs, trainer)
    half, words = budget // 2, sum(count for _, count in seen[0]) // 2
    half -= half % min(half, 64)  # over which context ranks divide
    part = [(Grid(1, 1, half), max(1, words))]
    smaller = of_any_depth(wanted, [batch_of(wanted, part, half)] * len(seen), trainer, ranks).summing(packs, trainer)
    slope = max(found.largest - smaller.largest, found.kept - smaller.kept, 1) / (budget - half)
    fits = max(0, int(budget + (cluster.room - found.largest) / slope) // 64 * 64)
    if found.largest > cluster.room:
        warnings.append(
            f"plan.budget={budget:,} does not fit: it needs {found.largest / 2**30:.1f} GiB of {cluster.room / 2**30:.1f} GiB; "
            + (f"at most {fits:,} tokens do" if fits else "shard the weights over more devices (trainer=fsdp), or choose a smaller dit")
        )
    if fits < wanted.longest:
        warnings.append(
            f"the longest clip has {wanted.longest:,} tokens and {fits:,} fit: cut clips with plan.frames, leave them out with plan.area, "
            "compute more again (recompute=full), or share packs (trainer=cp)"
        )
    return found, memory_of(found, room=cluster.room, budget=fits, counted="tokens of a pack")


def memory_of(traced: Traced, *, room: float, budget: int, counted: str) -> Memory:
    """What a traced step holds, of the `room` that there is, and how much of what is `counted` would fill it."""
    from sora.cost.bill import Memory

    names = ("weights", "average", "moments", "gradients", "kept", "largest")
    return Memory(**{name: getattr(traced, name) for name in names}, room=room, budget=budget, counted=counted)


def of_any_depth(wanted: Wanted, batches: Sequence[Batch], trainer: Any, ranks: int) -> Traced:
    """A traced step. Of many blocks that take turns by one or two, a few are, and each one more adds what the one before it did."""
    import torch

    from sora.config.build import build
    from sora.cost.tracing import traced

    def at(item: Wanted) -> Traced:
        return traced(lambda: module_of(item, gpu=True), batches, trainer=trainer, ranks=ranks, gpu=True)

    depth = wanted.config.dit.get("depth", 0)
    period = math.lcm(2, wanted.config.recompute.get("n", 1))
    first = FEW + (depth - FEW) % period
    if depth <= first + period:
        return at(wanted)
    with torch.device("meta"):
        network = build(wanted.config.dit, **wanted.given)
    kinds = [(type(block), *(value.shape for value in block.parameters())) for block in network.blocks]
    if kinds[period:] != kinds[:-period]:
        return at(wanted)
    numbers = sum(value.numel() for value in network.parameters())
    small, more = (at(of_depth(wanted, count, numbers=numbers)) for count in (first, first + period))
    return small.deeper(more, (depth - first) // period)


def of_depth(wanted: Wanted, depth: int, *, numbers: int) -> Wanted:
    """With so many blocks, which compute again what they would in the whole network of so many `numbers`."""
    from omegaconf import OmegaConf

    config = wanted.config.copy()
    if above := config.recompute.get("above", 0):
        name = "recompute_all_but_attention" if numbers > above else "recompute_none"
        OmegaConf.update(config, "recompute", {"_target_": f"sora.training.{name}"}, merge=False)
    config.dit.depth = depth
    return replace(wanted, config=config)


def module_of(wanted: Wanted, *, gpu: bool) -> Any:
    """What trains, as `sora train` has it. gpu: for tracing; attention is flash attention there, or keeps as much."""
    from omegaconf import OmegaConf

    from sora.assembly.network import flops_of, trainable
    from sora.config.build import build
    from sora.training.diffusion_task import DiffusionTask
    from sora.training.module import TrainingModule

    config = wanted.config.copy()
    if gpu:
        OmegaConf.update(config, "dit.attention", {"_target_": "sora.dit.attention_shapes"}, merge=False)
    OmegaConf.update(config, "compile", False)
    dit, scales = trainable(config, **wanted.given)
    objective = build(config.objective, path=build(config.path), density=build(config.density))
    flops = None if gpu else flops_of(config.dit, **wanted.given)
    task = DiffusionTask(dit=dit, text=wanted.text(), objective=objective, seed=0, bins=config.level_bins, encode=None, flops=flops)
    return TrainingModule(
        task=task,
        optimizer=build(config.optimizer, **({"scales": scales} if scales else {})),
        schedule=build(config.schedule, steps=config.steps),
        average=build(config.ema),
        clip=config.clip,
        guard=build(config.guard),
    )


def batch_of(wanted: Wanted, clips: PackOf, budget: int) -> Batch:
    """A pack of zeros."""
    import torch

    from sora.patches import pack
    from sora.text.packing import pack_text
    from sora.tokens import Batch

    config, grids = wanted.config, [grid for grid, _ in clips]
    patches = [torch.zeros(grid.tokens, wanted.given["patch_channels"]) for grid in grids]
    seconds = [torch.zeros(grid.t) for grid in grids]
    tokens = pack(patches, grids, seconds=seconds, budget=budget, max_clips=config.plan.max_clips)
    states = [torch.zeros(words, wanted.given["text_width"]) for _, words in clips]
    text = pack_text(states, budget=config.data.text_budget, max_clips=config.plan.max_clips)
    if pooled := (config.dit.get("level") or {}).get("pooled_width"):
        text = replace(text, pooled=torch.zeros(text.segments.count, pooled))
    numbers = tuple(range(len(clips)))
    return Batch(tokens, text, torch.zeros(budget, dtype=torch.bool), sample_ids=numbers, epochs=(0,) * len(clips))


def fitted(run: Path, ratio: float) -> float:
    """The share of the peak that a run's steps reached while they did not wait for data: the median of its log, without its first line.

    ratio: of executed operations to the model's, which the log counts.

    Raises:
        ValueError: the log says nothing of it.
    """
    from statistics import median

    from sora.runs.jsonl import MEASURED, read

    path = run / "metrics.jsonl"
    rows = read(path, MEASURED)
    reached = [row["mfu"] / (1 - row["data_share"]) for row in rows if row.get("mfu") and row["data_share"] < 1]
    if len(reached) < 2:
        raise ValueError(f"fit={run}: {path} has fewer than two lines with mfu; name a run of this network on such a device")
    return min(1.0, median(reached[1:]) * ratio)
