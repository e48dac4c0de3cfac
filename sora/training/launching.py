"""Compares the ranks that were started with those that a trainer lays out, before anything is written, and describes both."""

from __future__ import annotations

import os

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from sora.parallel.mesh import MeshStrategy
from sora.system.processes import own
from sora.system.started import PARENT, Started, rendezvous, started, starts_others


def take_seats(trainer: Trainer) -> None:
    """Refuse to train with other ranks than the trainer lays out; afterwards Lightning knows this process's rank.

    Raises:
        ValueError: a launcher started more or fewer ranks, or only this process was started and it cannot start the others.
    """
    here, devices, nodes = started(), trainer.num_devices, trainer.num_nodes
    laid = f"{_named(trainer)} lays out {_ranks(devices * nodes)}"
    if here.by and (here.near, here.nodes) != (devices, nodes):
        raise ValueError(
            f"{_ranks(here.ranks)} {'was' if here.ranks == 1 else 'were'} started ({here.by}), but {laid}; {_fitting(trainer, here)}"
        )
    if not here.by and here.allotted not in (None, devices * nodes):
        raise ValueError(
            f"the Slurm job has SLURM_NTASKS={here.allotted}, this process was started without srun, and {laid}; start the ranks with "
            f"srun, or, to leave the tasks idle, this process with SLURM_NTASKS={devices * nodes} before its command"
        )
    if not here.by and nodes > 1:
        raise ValueError(f"{laid} on {nodes} nodes, and only this process was started; start all of them with torchrun or srun")
    if not here.by and devices > 1:
        if not own():
            raise ValueError(
                f"{laid}, and this process can start no others, as it is not sora's own (a notebook?); run the command in a terminal: "
                f"torchrun --standalone --nproc-per-node={devices} -m sora.train …"
            )
        os.environ[PARENT] = f"{os.getpid()} {devices}"
    rank_zero_only.rank = here.rank


def _fitting(trainer: Trainer, here: Started) -> str:
    """The command-line words that would make the trainer fit the ranks that were started."""
    if here.ranks == 1:
        many = f"torchrun --standalone --nproc-per-node={trainer.num_devices}" if trainer.num_nodes == 1 else "torchrun or srun"
        return f"start them all ({many}), or set trainer=auto for one"
    if isinstance(trainer.strategy, MeshStrategy):
        return f"set trainer.devices={here.near} trainer.nodes={here.nodes}, or null, which takes what was started; or start others"
    on_cpu = " trainer.accelerator=cpu trainer.precision=32-true" if trainer.strategy.root_device.type == "cpu" else ""
    return f"trainer=ddp{on_cpu} trains on all of them together, as trainer=auto does; or start one process"


def _named(trainer: Trainer) -> str:
    if isinstance(trainer.strategy, MeshStrategy):
        return f"trainer.devices={trainer.num_devices} x trainer.nodes={trainer.num_nodes}"
    return f"trainer={'cpu' if trainer.strategy.root_device.type == 'cpu' else 'gpu'}"


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def told(trainer: Trainer) -> str:
    """One line for the terminal: the devices, the precision, the launcher, and the GPUs of this machine that lie idle."""
    here, device = started(), trainer.strategy.root_device
    many = trainer.num_devices * trainer.num_nodes
    kind = f"GPU ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "CPU"
    if isinstance(trainer.strategy, MeshStrategy):
        sizes = trainer.strategy.sizes
        how = "a mesh" if trainer.strategy.sharded or sizes.ranks != sizes.replicate else "trainer=ddp"
        line = f"{_ranks(many)} ({here.by}) on {trainer.num_nodes} x {trainer.num_devices} {kind}s as {how} of {sizes}"
    else:
        line = f"one process on one {kind}"
    idle = torch.cuda.device_count() - (trainer.num_devices if device.type == "cuda" else 0)
    return f"training in {trainer.precision}: {line}{_idle(idle, device.type) if idle > 0 else ''}"


def _idle(count: int, kind: str) -> str:
    """The part of the line about this machine's idle GPUs; `kind` is the type of device that trains."""
    lies = "a GPU of this machine lies" if count == 1 else f"{count} GPUs of this machine lie"
    if kind != "cuda":
        return f"; {lies} idle: trainer=auto trains on one"
    return f"; {lies} idle: torchrun --standalone --nproc-per-node={torch.cuda.device_count()} -m sora.train … trains on all"


class Launched(ClusterEnvironment):
    """The cluster environment of the launcher that `sora.system.started` found. Lightning's own environments each know one launcher only,
    and guess where its variables are incomplete."""

    def __init__(self, here: Started) -> None:
        super().__init__()
        self._here = here

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return rendezvous()[0]

    @property
    def main_port(self) -> int:
        return rendezvous()[1]

    @staticmethod
    def detect() -> bool:
        return bool(started().by)

    def world_size(self) -> int:
        return self._here.ranks

    def set_world_size(self, size: int) -> None:
        """Does nothing: the launcher sets the world size."""

    def global_rank(self) -> int:
        return self._here.rank

    def set_global_rank(self, rank: int) -> None:
        """Does nothing: the launcher sets the rank."""

    def local_rank(self) -> int:
        return self._here.local

    def node_rank(self) -> int:
        return self._here.node


def environment() -> ClusterEnvironment:
    """The cluster environment of the launcher, or else Lightning's, which starts the other ranks itself, each with this command line."""
    here = started()
    return Launched(here) if here.by and not starts_others() else LightningEnvironment()
