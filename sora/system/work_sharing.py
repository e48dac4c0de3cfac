"""Several processes share the work of one command: each does a part, and all get the results of the others.

They are the processes that a launcher started (`sora.system.started`). Large results such as clips and features are passed in files in the
output folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sora.system import terminal
from sora.system.locks import alone_in
from sora.system.started import rendezvous, started

LONGEST = timedelta(days=7)  # the longest wait for other ranks


@dataclass(frozen=True)
class Share:
    """This process's place among several. local: its number on its machine."""

    rank: int = 0
    ranks: int = 1
    local: int = 0
    held: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)

    def hold(self, folder: Path) -> None:
        """Lock an output folder until all processes are done; ValueError if another evaluation writes to it. The first process locks it for
        all, and the others wait for that, so that they do not write beside another evaluation."""
        refused: Exception | None = None
        if self.first:
            try:
                self.held.enter_context(alone_in(folder, "evaluating into"))
            except (ValueError, OSError) as error:
                refused = error
        told = self.of_first(None if refused is None else str(refused))
        if refused is not None:
            raise refused
        if told is not None:
            raise ValueError(told)

    def of_first(self, value: Any) -> Any:
        """The first process's value, plain JSON, on all processes: what each reads from the disk may differ, because others write there."""
        if self.ranks == 1:
            return value
        return json.loads(_told(json.dumps(value if self.first else None, allow_nan=False).encode())[0])

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, total: int) -> range:
        """This process's numbers below `total`, dealt out in turn."""
        return range(self.rank, total, self.ranks)

    def together(self) -> None:
        """Wait until every process has called this; raise an error if one has died."""
        if self.ranks > 1:
            import torch.distributed as dist

            dist.barrier()

    def say(self, line: str) -> None:
        if self.first:
            terminal.say(line)

    def tell(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.say(line)

    def rows(
        self, total: int, work: Callable[[int], Mapping[str, Any]], progress: Callable[[int, int], None] | None = None
    ) -> list[dict[str, Any]]:
        """The results of work(number), plain JSON, for every number below `total`: each process computes a part, and all get all. progress:
        called with (done, total) of this process's part."""
        done, mine = [], self.mine(total)
        for number in mine:
            done.append(dict(work(number)))
            if progress is not None:
                progress(len(done), len(mine))
        parts = [done] if self.ranks == 1 else [json.loads(part) for part in _told(json.dumps(done, allow_nan=False).encode())]
        return [parts[number % self.ranks][number // self.ranks] for number in range(total)]


def _told(mine: bytes) -> list[bytes]:
    """The bytes of every process of the group, in the order of their ranks."""
    import numpy as np
    import torch
    import torch.distributed as dist

    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(mine)]))
    longest = max(int(length) for length in lengths)
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.from_numpy(np.frombuffer(mine.ljust(longest), dtype=np.uint8).copy()))
    return [part.numpy().tobytes()[: int(length)] for part, length in zip(parts, lengths, strict=True)]


@contextmanager
def joined(device: str) -> Iterator[Share]:
    """A context with this process's share, in a process group. All leave it together, because launchers take a process that ends early for
    dead.

    If a machine has several processes, each uses the GPU of its local number.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        share = Share(dist.get_rank(), dist.get_world_size())
        with share.held:
            yield share
        return
    here = started()
    share = Share(here.rank, here.ranks, here.local)
    if share.ranks == 1:
        if (here.allotted or 1) > 1:
            print(f"the Slurm job has SLURM_NTASKS={here.allotted}, and this process works alone: start it with srun to share the work")
        with share.held:
            yield share
        return
    address, port = rendezvous()
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(share.local % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=share.rank, world_size=share.ranks, timeout=LONGEST)
    try:
        with share.held:
            yield share
            share.together()
    finally:
        dist.destroy_process_group()
