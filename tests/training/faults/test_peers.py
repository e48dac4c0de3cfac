"""Ranks learn of a death whatever they are doing, name who died, and leave those alone that end by themselves."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sora.training.faults import peers
from sora.training.faults.peers import Peers
from sora.training.faults.watchdog import STALLED
from tests.training.groups import forked

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GRACE, RANKS, EVER = 0.4, 4, 60.0


def ended(
    folder: Path, work: Callable[[int, Peers], None], *, count: int = RANKS, grace: float = GRACE
) -> tuple[list[int], list[str], float]:
    """Each rank's exit code and what it said, and the seconds until all had ended; `work(rank, peers)` is done while all are connected."""

    def connected(rank: int) -> int:
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        said = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 2)
        sys.stderr = os.fdopen(2, "w")
        try:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
            with Peers(grace=grace) as found:
                found.connect(CPU)
                children = range(peers.BRANCHES * rank + 1, min(peers.BRANCHES * (rank + 1) + 1, count))
                while sum(line.rank >= 0 for line in found._lines) < len(children) or len(found._lines) < len(children) + (rank > 0):
                    time.sleep(0.01)  # a thread takes the connections
                dist.barrier()
                work(rank, found)
        except RuntimeError:
            return 2
        return 0

    began = time.monotonic()
    codes = forked(count, connected)
    return codes, [(folder / f"said-{rank}").read_text() for rank in range(count)], time.monotonic() - began


@pytest.mark.parametrize(("branches", "dying"), [(32, 0), (32, 3), (1, 0), (1, 3), (1, 2)])
def test_ranks_that_compute_or_wait_end_with_the_one_that_died(tmp_path, monkeypatch, branches, dying):
    """With one branch they stand in a line, and the news goes from mouth to mouth within one grace."""
    monkeypatch.setattr(peers, "BRANCHES", branches)

    def work(rank: int, _: Peers) -> None:
        if rank == dying:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(EVER)

    codes, said, seconds = ended(tmp_path, work)
    assert codes == [-signal.SIGKILL if rank == dying else STALLED for rank in range(RANKS)]
    assert all(f"rank {dying} has died, so rank {rank} ends too" in said[rank] for rank in range(RANKS) if rank != dying)
    assert seconds < EVER / 2


def test_a_childs_copy_of_the_connections_does_not_hide_a_death(tmp_path):
    def work(rank: int, _: Peers) -> None:
        if rank == 1:
            child = os.fork()  # as a loader's worker, which outlives its trainer for a moment
            if child == 0:
                time.sleep(EVER)
                os._exit(0)
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(EVER)

    codes, _, seconds = ended(tmp_path, work)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # it was still there
    assert codes == [STALLED, -signal.SIGKILL, STALLED, STALLED] and seconds < EVER / 2


def test_who_leaves_without_an_error_is_not_mourned(tmp_path):
    codes, said, _ = ended(tmp_path, lambda rank, _: time.sleep(0.7 * (rank == 0)))
    assert (codes, said) == ([0] * RANKS, [""] * RANKS)


def test_ranks_that_fail_alike_keep_their_own_codes_and_one_that_fails_alone_ends_all(tmp_path):
    def alike(rank: int, _: Peers) -> None:
        time.sleep(0.05 * rank)
        raise RuntimeError

    def alone(rank: int, _: Peers) -> None:
        if rank == 2:
            raise RuntimeError
        time.sleep(EVER)

    codes, said, _ = ended(tmp_path, alike, grace=EVER)  # however long one takes to fail after the others
    assert (codes, said) == ([2] * RANKS, [""] * RANKS)
    (tmp_path / "alone").mkdir()
    codes, said, _ = ended(tmp_path / "alone", alone)
    assert codes == [STALLED, STALLED, 2, STALLED]
    assert all(f"rank 2 has failed, so rank {rank} ends too" in said[rank] for rank in (0, 1, 3)) and not said[2]


@pytest.mark.parametrize("how", ["died", "failed"])
def test_ranks_that_wait_for_one_that_is_gone_say_who_and_not_only_what_the_library_does(tmp_path, how):
    """Its connection in the process group closes, too, and whoever waits for it fails at once."""

    def work(rank: int, _: Peers) -> None:
        if rank == 2:
            if how == "failed":
                raise ValueError
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    codes, said, seconds = ended(tmp_path, work)
    assert codes == [STALLED, STALLED, -signal.SIGKILL if how == "died" else 1, STALLED] and seconds < EVER / 2
    assert all(f"rank 2 has {how}, so rank {rank} ends too" in said[rank] for rank in (0, 1, 3))


def test_strangers_are_not_listened_to(tmp_path):
    def work(rank: int, found: Peers) -> None:
        if rank == 0:
            assert found._listening is not None
            for sent in (b"", b"x" * 64, b"lost 3\n" * 9, bytes(20)):
                with socket.create_connection(found._listening.getsockname()) as stranger:
                    stranger.sendall(sent)
            time.sleep(2 * GRACE)
        dist.barrier()

    codes, said, _ = ended(tmp_path, work, count=2)
    assert (codes, said) == ([0, 0], ["", ""])


def test_one_process_has_no_peers():
    with Peers() as found:
        found.connect(CPU)
        assert not found._lines
