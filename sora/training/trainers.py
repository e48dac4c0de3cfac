"""Lightning's Trainer as the bare loop, for each kind of machine. What remembers, watches and records is ours and switched off there."""

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

PATIENCE = timedelta(minutes=30)  # of a collective; the watchdog comes first
SPREADERS = Spreaders(context=spread_context, tensor=spread_tensor, encoding=share_encoding, cut=beside)
PRECISIONS = ("32-true", "bf16-mixed")  # weights in bf16 alone lose small updates, and the average lives on those


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
    """One process on one device, or, where a launcher started several, whole copies on all of them (ddp); null: what is there."""
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
    """One process on one CPU or one GPU."""
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
    """Several processes, laid out as `sora.parallel.mesh` says; replicate or shard null: what the other axes leave.

    devices, of each node, or nodes null: as many as a launcher started; without one, all GPUs of this machine.

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
    # Lightning's own use of a function that torch has renamed; nothing that whoever trains could mend.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)  # older torch has no other name
    # Words that a block only reads leave it as they came, through FSDP as a view of themselves. What it warns of, an operation in place on
    # them that loses the hook which gathers the block's weights for the backward, nobody does, and the tokens have that hook too.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    if threads > 0:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts, and is not deterministic without
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would write every new tensor twice
    return Trainer(
        accelerator=accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=nodes,
        precision=precision,  # pyright: ignore[reportArgumentType]
        plugins=[environment()],
        callbacks=list(callbacks),
        max_epochs=1,  # our loader is the whole run: its steps from the first that is still to be made
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
    """Lightning's default measures nothing either, but makes a generator for each of some twenty hooks a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._nothing
