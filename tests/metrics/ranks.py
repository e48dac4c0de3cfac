"""Two processes that talk over gloo, for the laws of metrics that are gathered over ranks."""

import socket
from collections.abc import Callable
from typing import Any

import torch


def _rank(rank: int, port: int, function: Callable[[int], Any], queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queue.put(function(rank))
    torch.distributed.destroy_process_group()


def on_two_ranks(function: Callable[[int], Any]) -> list[Any]:
    """What function(rank) returns on each of two ranks, in no order; both must end well within a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, port, function, queue), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    return [queue.get() for _ in ranks]
