"""The price of training a VAE before it is launched: `sora plan task=vae cluster=…`, by traced steps as the denoising network's is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.cluster.bill import Bill, Memory
    from sora.cluster.hardware import Cluster
    from sora.data.loading import FrameBatch
    from sora.data.planning import CropPlan
    from sora.training.tracing import Traced

Shape = tuple[int, int, int]  # frames, height, width of a crop


def priced(config: DictConfig, plan: CropPlan, *, clips: int) -> Bill:
    """Of a run on crops. Steps take the shapes in turn: times, operations and messages are means over them, memory is the largest one's.

    clips: that the crops are from. A token is a position of the latents; all ranks have crops of one shape, so none waits for another.
    """
    from sora.cluster.bill import Bill
    from sora.configs.build import build
    from sora.price import arranged, shared_out, timed, utilised

    warnings: list[str] = []
    trainer, ranks, mesh = arranged(config, build(config.cluster), warnings)
    cluster, assumed = utilised(config, build(config.cluster), ratio=1.0)  # nothing is computed again, and there is no padding
    packs, readers = shared_out(plan.packs, trainer, warnings)
    crops = plan.batch // plan.packs * packs // readers
    found = [trace(config, shape, crops, trainer, ranks) for shape in plan.shapes]
    largest = max(range(len(found)), key=lambda number: found[number].largest)
    memory = measured(config, found[largest], plan.shapes[largest], crops, trainer, ranks, cluster, warnings)
    one, count = found[largest], len(found)
    flops = sum(each.flops for each in found) / count
    sent = {axis: sum(each.sent.get(axis, 0) for each in found) / count for axis in one.sent}
    time = timed(config, cluster, one, flops=flops, slowest=1.0, sent=sent)
    return Bill(
        cluster=cluster,
        mesh=mesh,
        precision=config.trainer.precision,
        steps=config.steps,
        numbers=one.numbers,
        tokens=crops * readers * mean_positions(config, plan.shapes),
        clips=crops * readers,
        flops=flops * readers,
        executed=flops * readers,
        memory=memory,
        sent=sent,
        time=time,
        saved=one.saved,
        checkpoints=config.checkpoint.keep,
        host=one.whole * min(cluster.per_node, ranks),
        epochs=config.steps * crops * readers / (count * clips),
        assumed=assumed,
        warnings=warnings,
    )


def mean_positions(config: DictConfig, shapes: Sequence[Shape]) -> float:
    """Of the latents of a crop."""
    import torch

    from sora.configs.build import build

    with torch.device("meta"):
        vae = build(config.vae)
    sizes = [vae.latent_shape(*shape) for shape in shapes]
    return sum(time * height * width for time, height, width in sizes) / len(sizes)


def measured(
    config: DictConfig, found: Traced, shape: Shape, crops: int, trainer: Any, ranks: int, cluster: Cluster, warnings: list[str]
) -> Memory:
    """The memory of the traced step, and from another one how many crops of that shape would fill every device."""
    from sora.price import memory_of

    other = crops // 2 or 2
    slope = max(1.0, (found.largest - trace(config, shape, other, trainer, ranks).largest) / (crops - other))
    fits = max(0, int(crops + (cluster.room - found.largest) // slope))
    if found.largest > cluster.room:
        told = f"{found.largest / 2**30:.1f} GiB of {cluster.room / 2**30:.1f} GiB"
        fitting = f"at most plan.batch={fits * found.readers:,} does" if fits else "make plan.shapes smaller, or choose a smaller vae"
        warnings.append(f"{crops:,} crops of {'x'.join(map(str, shape))} on a device do not fit: they need {told}; {fitting}")
    return memory_of(found, room=cluster.room, budget=fits * found.readers, counted="crops of a step (plan.batch)")


def trace(config: DictConfig, shape: Shape, crops: int, trainer: Any, ranks: int) -> Traced:
    """A step of one rank on so many crops."""
    from sora.training.tracing import traced

    return traced(lambda: module_of(config), [batch_of(shape, crops)], trainer=trainer, ranks=ranks, gpu=True)


def batch_of(shape: Shape, crops: int) -> FrameBatch:
    """Black crops."""
    import torch

    from sora.data.loading import FrameBatch

    numbers = tuple(range(crops))
    frames = torch.zeros(crops, *shape, 3, dtype=torch.uint8)
    return FrameBatch(frames, torch.ones(crops), sample_ids=numbers, epochs=(0,) * crops, keys=tuple(map(str, numbers)))


def module_of(config: DictConfig) -> Any:
    """What trains, as `sora train` has it."""
    from sora.configs.build import build
    from sora.training.module import TrainingModule
    from sora.training.vae_module import VaeTask

    return TrainingModule(
        task=VaeTask(vae=build(config.vae), objective=build(config.objective), seed=0),
        optimizer=build(config.optimizer),
        schedule=build(config.schedule, steps=config.steps),
        average=build(config.ema),
        clip=config.clip,
        guard=build(config.guard),
    )
