"""Several processes that share the work of one command: each does its part, and they meet in files of the output folder.

They are those that torchrun or srun started; nothing but a rendezvous passes between them, so any backend and any hardware will do.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sora import storage

LONGEST = timedelta(days=7)  # that a rank waits for the others' parts


@dataclass(frozen=True)
class Share:
    """Which of several processes this is. local: its number on its machine."""

    rank: int = 0
    ranks: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, total: int) -> range:
        """The numbers of this process's part, in turn with the others."""
        return range(self.rank, total, self.ranks)

    def together(self) -> None:
        """Wait until every process is here; an error if one has died."""
        if self.ranks > 1:
            import torch.distributed as dist

            dist.barrier()

    def say(self, line: str) -> None:
        if self.first:
            print(line)

    def rows(self, total: int, work: Callable[[int], Mapping[str, Any]], *, folder: Path, name: str) -> list[dict[str, Any]]:
        """work(number), plain JSON, for every number below `total`: each process does its part and all get all."""
        done = {number: dict(work(number)) for number in self.mine(total)}
        if self.ranks == 1:
            return [done[number] for number in range(total)]
        turn = _turn()  # of this command: another one may be at work in the same folder
        storage.write_json(folder / _part(name, turn, self.rank), done)
        self.together()
        parts = [storage.read_json(folder / _part(name, turn, rank)) for rank in range(self.ranks)]
        self.together()
        (folder / _part(name, turn, self.rank)).unlink()
        found = {int(number): row for part in parts for number, row in part.items()}
        return [found[number] for number in range(total)]


def _part(name: str, turn: str, rank: int) -> str:
    return f".part-{name}-{turn}-{rank}.json"


def _turn() -> str:
    """A word that all processes of the group have in common and no other has."""
    import torch
    import torch.distributed as dist

    drawn = torch.tensor([secrets.randbits(62)])
    dist.broadcast(drawn, 0)
    return f"{drawn.item():x}"


def share_of(environment: Mapping[str, str]) -> Share:
    """What the launcher says: torchrun's variables, or those of a step of Slurm's srun; without either, one process."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names: Sequence[str] = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:  # a batch script itself has a rank, too, but no step
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Share()
    return Share(*(int(environment.get(name, "0")) for name in names))


@contextmanager
def joined(device: str) -> Iterator[Share]:
    """This process's share, in a group with the others while it lasts. All leave together: launchers take one that ends early for dead.

    With several processes on a machine each takes the GPU of its local number.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield Share(dist.get_rank(), dist.get_world_size())
        return
    share = share_of(os.environ)
    if share.ranks == 1:
        yield share
        return
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(share.local % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=share.rank, world_size=share.ranks, timeout=LONGEST)
    try:
        yield share
        share.together()
    finally:
        dist.destroy_process_group()
