"""The price of training a VAE before it starts: `sora plan task=vae cluster=…`, from traced steps as for the denoising network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.cost.bill import Bill, Memory
    from sora.cost.hardware import Cluster
    from sora.cost.price import Launch
    from sora.cost.tracing import Traced
    from sora.data.loading.loader import FrameBatch
    from sora.data.plan.crops import CropPlan
    from sora.training.module import TrainingModule
    from sora.vae.vae import VideoVAE

Shape = tuple[int, int, int]  # frames, height, width of a crop


@dataclass(frozen=True)
class WantedCrops:
    """The VAE training to price. module: makes the training module. outline: makes the VAE without memory. clips: their number."""

    launch: Launch
    plan: CropPlan
    module: Callable[[], TrainingModule]
    outline: Callable[[], VideoVAE]
    clips: int


def bill(wanted: WantedCrops) -> Bill:
    """The bill of the run. Steps take the shapes of crops in turn: times, FLOPs and messages are means over shapes, memory is that of the
    largest.

    A token is a latent position. All ranks have crops of one shape, so none waits for another.
    """
    from sora.cost.bill import Bill
    from sora.cost.price import arranged, shared_out, timed, utilised

    launch, plan = wanted.launch, wanted.plan
    warnings: list[str] = []
    trainer, ranks, mesh = arranged(launch.trainer, launch.cluster, warnings)
    bf16 = trainer.precision.startswith("bf16")
    cluster, assumed = utilised(launch, bf16=bf16, ratio=1.0)  # no recomputation, no padding
    crops = plan.batch // plan.packs  # per pack
    packs, readers = shared_out(plan.packs, trainer, warnings, crops=crops)
    each = packs // readers  # packs per rank, one after another
    seen = min(2, each)
    found = [trace(wanted, shape, [crops] * seen, trainer, ranks) for shape in plan.shapes]
    largest = max(range(len(found)), key=lambda number: found[number].largest)
    memory = measured(wanted, found[largest], plan.shapes[largest], [crops] * seen, packs, trainer, ranks, cluster, warnings)
    one, count = found[largest], len(found)
    flops = sum(one.flops for one in found) / count * each / seen
    sent = {axis: sum(one.sent.get(axis, 0) for one in found) / count for axis in one.sent}
    sent = {axis: size if axis.startswith("replicate") else size * each / seen for axis, size in sent.items()}
    time = timed(cluster, one, bf16=bf16, flops=flops, slowest=1.0, sent=sent)
    return Bill(
        cluster=cluster,
        mesh=mesh,
        precision=trainer.precision,
        steps=launch.steps,
        numbers=one.numbers,
        tokens=crops * packs * mean_positions(wanted.outline(), plan.shapes),
        clips=crops * packs,
        flops=flops * readers,
        executed=flops * readers,
        memory=memory,
        sent=sent,
        time=time,
        saved=one.saved,
        checkpoints=launch.checkpoints,
        host=one.whole * min(cluster.per_node, ranks),
        epochs=launch.steps * crops * packs / (count * wanted.clips),
        assumed=assumed,
        warnings=warnings,
    )


def mean_positions(vae: VideoVAE, shapes: Sequence[Shape]) -> float:
    """The mean number of latent positions of a crop."""
    sizes = [vae.latent_shape(*shape) for shape in shapes]
    return sum(time * height * width for time, height, width in sizes) / len(sizes)


def measured(
    wanted: WantedCrops,
    found: Traced,
    shape: Shape,
    crops: Sequence[int],
    packs: int,
    trainer: Any,
    ranks: int,
    cluster: Cluster,
    warnings: list[str],
) -> Memory:
    """The memory of the traced step, and, by another trace, the number of crops of that shape per step that would fill every device.

    crops: of each traced pack, all equal. packs: per step.
    """
    from sora.cost.price import memory_of

    one = crops[0]
    other = one // 2 or 2
    slope = max(1.0, (found.largest - trace(wanted, shape, [other] * len(crops), trainer, ranks).largest) / (one - other))
    fits = max(0, int(one + (cluster.room - found.largest) // slope))
    if found.largest > cluster.room:
        told = f"{found.largest / 2**30:.1f} GiB of {cluster.room / 2**30:.1f} GiB"
        fitting = f"at most plan.batch={fits * packs:,} does" if fits else "make plan.shapes smaller, or choose a smaller vae"
        warnings.append(f"packs of {one:,} crops of {'x'.join(map(str, shape))} on a device do not fit: they need {told}; {fitting}")
    return memory_of(found, room=cluster.room, budget=fits * packs, counted="crops of a step (plan.batch)")


def trace(wanted: WantedCrops, shape: Shape, crops: Sequence[int], trainer: Any, ranks: int) -> Traced:
    """A traced step of one rank, on packs with these numbers of crops."""
    from sora.cost.tracing import traced

    found = traced(wanted.module, [batch_of(shape, count) for count in crops], trainer=trainer, ranks=ranks, gpu=True)
    return found.summing(wanted.plan.packs, trainer)


def batch_of(shape: Shape, crops: int) -> FrameBatch:
    """Black crops."""
    import torch

    from sora.data.loading.loader import FrameBatch

    numbers = tuple(range(crops))
    frames = torch.zeros(crops, *shape, 3, dtype=torch.uint8)
    return FrameBatch(frames, torch.ones(crops), sample_ids=numbers, epochs=(0,) * crops, keys=tuple(map(str, numbers)))
