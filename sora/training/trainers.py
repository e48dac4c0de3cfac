"""Lightning's Trainer as a bare loop, for each kind of machine. Its own checkpointing, logging and progress bars are switched off."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy

from sora.parallel.context import spread_context
from sora.parallel.mesh import MeshStrategy, Sizes, Spreaders
from sora.parallel.tensor import beside, spread_tensor
from sora.system.devices import numerics, present
from sora.system.started import started
from sora.training.launching import environment
from sora.training.online_encoding import share_encoding

PATIENCE = timedelta(minutes=30)  # timeout of a collective; the watchdog acts earlier
SPREADERS = Spreaders(context=spread_context, tensor=spread_tensor, encoding=share_encoding, cut=beside)
PRECISIONS = ("32-true", "bf16-mixed")  # no bf16 weights: they would lose small updates, which the weight average needs


def auto_trainer(
    *,
    accelerator: str | None,
    devices: int | None,
    nodes: int | None,
    precision: str | None,
    threads: int,
    deterministic: bool | None,
    callbacks: Sequence[Callback],
) -> Trainer:
    """A trainer for the devices at hand: one process on one device, or, if a launcher started several, data parallelism over all (ddp).
    None chooses by what is there."""
    here, made = started(), numerics(accelerator)
    shared: dict[str, Any] = {
        "accelerator": accelerator or present(),
        "precision": precision or made["precision"],
        "threads": threads,
        "deterministic": made["deterministic"] if deterministic is None else deterministic,
        "callbacks": callbacks,
    }
    devices, nodes = here.near if devices is None else devices, here.nodes if nodes is None else nodes
    if devices * nodes == 1:
        return single_trainer(**shared)
    return mesh_trainer(devices=devices, nodes=nodes, replicate=None, shard=1, context=1, tensor=1, sharded=False, **shared)


def single_trainer(*, accelerator: str, precision: str, threads: int, deterministic: bool, callbacks: Sequence[Callback]) -> Trainer:
    """A trainer of one process on one CPU or one GPU."""
    return _trainer(
        "auto",
        accelerator=accelerator,
        devices=1,
        nodes=1,
        precision=precision,
        threads=threads,
        deterministic=deterministic,
        callbacks=callbacks,
    )


def mesh_trainer(
    *,
    accelerator: str,
    devices: int | None,
    nodes: int | None,
    replicate: int | None,
    shard: int | None,
    context: int,
    tensor: int,
    sharded: bool,
    precision: str,
    threads: int,
    deterministic: bool,
    callbacks: Sequence[Callback],
) -> Trainer:
    """A trainer of several processes, laid out as `sora.parallel.mesh` says; replicate or shard None is the size that the other axes leave.

    devices (per node) or nodes None: as many as a launcher started; without a launcher, all GPUs of this machine.

    Raises:
        ValueError: the mesh does not use every device.
    """
    here = started()
    if devices is None:
        devices = here.near if here.by or accelerator != "gpu" else max(1, torch.cuda.device_count())
    nodes = here.nodes if nodes is None else nodes
    ranks = devices * nodes
    rest = max(1, ranks // (max(1, context) * max(1, tensor)))
    replicate = max(1, rest // (shard or rest)) if replicate is None else replicate
    shard = max(1, rest // max(1, replicate)) if shard is None else shard
    sizes = Sizes(replicate, shard, context, tensor)
    sizes.refuse_idle(ranks, by=f"are trainer.devices={devices} x trainer.nodes={nodes}")
    return _trainer(
        MeshStrategy(
            sizes=sizes,
            sharded=sharded,
            spreaders=SPREADERS,
            bf16=precision == "bf16-mixed",
            deterministic=deterministic,
            timeout=PATIENCE,
        ),
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        precision=precision,
        threads=threads,
        deterministic=deterministic,
        callbacks=callbacks,
    )


def _trainer(
    strategy: Strategy | str,
    *,
    accelerator: str,
    devices: int,
    nodes: int,
    precision: str,
    threads: int,
    deterministic: bool,
    callbacks: Sequence[Callback],
) -> Trainer:
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision} is not trained here; choose {', '.join(PRECISIONS)}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, but torch sees no GPU here; use trainer=auto, or trainer.accelerator=cpu trainer.precision=32-true, "
            "or install a torch built for your GPU"
        )
    if accelerator not in ("cpu", "gpu"):
        raise ValueError(f"trainer.accelerator={accelerator} does not exist; choose cpu or gpu")
    if accelerator == "gpu" and devices > torch.cuda.device_count():
        raise ValueError(
            f"{devices} ranks of a machine need {devices} GPUs, and torch sees {torch.cuda.device_count()}; start fewer "
            "(trainer.devices=…), or let every rank see all GPUs of its machine (srun --gpus-per-node=… in place of --gpus-per-task)"
        )
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Lightning itself calls a function that torch has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)  # older torch has no other name
    # A block returns unchanged text tokens through FSDP as a view. FSDP warns that an in-place operation on the view would lose the hook
    # that gathers the block's weights for the backward. Nothing writes to it in place, and the tokens have that hook too.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    if threads > 0:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; without it cuBLAS is not deterministic
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # True would write every new tensor twice
    return Trainer(
        accelerator=accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=nodes,
        precision=precision,  # pyright: ignore[reportArgumentType]
        plugins=[environment()],
        callbacks=list(callbacks),
        max_epochs=1,  # one epoch is the whole run: our loader yields the steps that are still to be made
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_autolog_hparams=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=2**31,
        profiler=Unprofiled(),
    )


class Unprofiled(PassThroughProfiler):
    """A profiler without hooks: Lightning's default measures nothing either, but makes a generator for each of some twenty hooks a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._nothing
