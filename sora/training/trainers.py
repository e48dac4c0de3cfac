"""Lightning's Trainer as the bare loop, for each kind of machine. What remembers, watches and records is ours and switched off there."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy

from sora.training.mesh import MeshStrategy, Sizes

PATIENCE = timedelta(minutes=30)  # of a collective; the watchdog comes first
PRECISIONS = ("32-true", "bf16-mixed")  # weights in bf16 alone lose small updates, and the average lives on those


def single(*, accelerator: str, precision: str, threads: int, deterministic: bool, callbacks: Sequence[Callback]) -> Trainer:
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


def mesh(
    *,
    accelerator: str,
    devices: int,
    nodes: int,
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
    """Several processes, laid out as `sora.training.mesh` says; replicate or shard null: what the other axes leave.

    Raises:
        ValueError: the mesh does not use every device.
    """
    ranks = devices * nodes
    rest = max(1, ranks // (max(1, context) * max(1, tensor)))
    replicate = max(1, rest // (shard or rest)) if replicate is None else replicate
    shard = max(1, rest // max(1, replicate)) if shard is None else shard
    sizes = Sizes(replicate, shard, context, tensor)
    sizes.refuse_idle(ranks, by=f"are trainer.devices={devices} x trainer.nodes={nodes}")
    return _trainer(
        MeshStrategy(sizes=sizes, sharded=sharded, bf16=precision == "bf16-mixed", timeout=PATIENCE),
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
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU here; use trainer=cpu, or install a torch built for your GPU")
    if accelerator not in ("cpu", "gpu"):
        raise ValueError(f"trainer.accelerator={accelerator} does not exist; choose cpu or gpu")
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
        plugins=_environment(),  # pyright: ignore[reportArgumentType]
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


def _environment() -> list[SLURMEnvironment]:
    """Slurm's, where it started us, without the requeueing that Lightning does by itself: several times, and saving nothing."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]
