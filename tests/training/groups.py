"""Several ranks on one machine: forked processes in a gloo group."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def forked(ranks: int, work: Callable[[int], int]) -> list[int]:
    """Do `work(rank)` in forked processes, which end with the code that it gives (1: it raised); their codes (-N: of signal N)."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            code = work(rank)
        finally:
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def in_ranks(ranks: int, folder: Path, work: Callable[[int], None]) -> None:
    """Do `work(rank)` in forked processes that form a gloo group; an error in any is an error here."""
    store = folder / f"store-{len(list(folder.glob('store-*')))}"

    def ranked(rank: int) -> int:
        try:
            torch.set_num_threads(1)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
            work(rank)
            dist.barrier()
        except BaseException as error:
            (folder / f"error-{rank}").write_text(repr(error))
            return 1
        return 0

    codes = forked(ranks, ranked)
    said = [path.read_text() for path in folder.glob("error-*")]
    assert codes == [0] * ranks, said
