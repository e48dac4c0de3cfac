"""What a launch on up to 4,096 ranks asks of a rank and of the first one, simulated on one machine: `python -m experiments.cluster_scale`.

Planning: 100 million clips and as many packs a step as ranks. Manifest: what the first rank reads, writes and holds of a checkpoint of a
network of 9 billion weights whose every tensor is in pieces on every rank, in the format of `sora.training.checkpoint`; measured on two
smaller numbers of ranks, between which it grows evenly, and continued to the largest. Rendezvous: ranks that meet at one TCPStore, as many
as do within some seconds, and the connections that ranks hold to know of one another's death.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore

from experiments.benchmarks.plan import MILLION, PUBLISHED_BUDGET, memory, of, published
from sora.data.planning import Cost, LatentClips, Packed
from sora.storage import text_hash
from sora.tokens import Grid
from sora.training import checkpoint, peers
from sora.training.checkpoint import Saving, TrainingState

RANKS = (64, 512, 4096)
MANIFEST_RANKS = (32, 128)
RENDEZVOUS_SECONDS = 10.0
CLIPS = 100 * MILLION
BLOCKS, WIDTH = 32, 4096  # 8.6 billion weights in the blocks
KINDS = {"model": 1, "ema": 1, "optimizer": 2}  # tensors for each weight


def planning(path: str, ranks: int) -> dict[str, Any]:
    """Of one rank, in a process of its own: a window's steps planned, and the rank's share of one taken."""
    columns = np.memmap(path, dtype=np.int16, mode="r", shape=(CLIPS, 3))
    before, start = memory(), time.process_time()
    clips = LatentClips([columns], patch=Grid(1, 1, 1), fingerprint="scale")
    cost = Cost(linear=1.0, quadratic=1 / (6 * 3072))
    plan = of(clips, packs=ranks, budget=PUBLISHED_BUDGET, cost=cost, filling=Packed(), drop_long=True)
    opened, start = time.process_time() - start, time.process_time()
    packs = plan.packs_of_windows(1)
    planned, start = time.process_time() - start, time.process_time()
    share = plan.at(0).share(ranks=ranks, rank=ranks - 1)
    taken, after = time.process_time() - start, memory()
    return {
        "ranks": ranks,
        "clips": CLIPS,
        "seconds_to_open": opened,
        "planning_seconds_a_step": planned / (packs / ranks),
        "share_seconds": taken,
        "clips_of_a_rank": sum(len(pack.items) for pack in share),
        "index_mb_of_a_node": CLIPS * 6 / 1e6,  # pages of one file, which the node's ranks share
        "anonymous_mb_of_a_rank": after["RssAnon"] - before["RssAnon"],
    }


def tensors() -> dict[str, tuple[int, ...]]:
    """The weights of a block kind with modulation, self- and cross-attention and an MLP, by name."""
    shapes = {f"{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "out", "cross.q", "cross.k", "cross.v", "cross.out")}
    shapes |= {"up.weight": (4 * WIDTH, WIDTH), "down.weight": (WIDTH, 4 * WIDTH), "modulation.weight": (6 * WIDTH,)}
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    return {f"dit.blocks.{number}.{name}": shape for number in range(BLOCKS) for name, shape in {**shapes, **biases}.items()}


def manifest(ranks: int) -> dict[str, Any]:
    """Merging what every rank says of its files into one manifest, and reading that again."""
    shapes = tensors()
    with tempfile.TemporaryDirectory() as name:
        state = TrainingState(step=1, samples=0, tokens=0, tensors={})
        saving = Saving(Path(name), state, rank=0, ranks=ranks)
        saving._staging.mkdir()
        written = sum(_part(saving, shapes, rank, ranks) for rank in range(ranks))
        before, start = memory(), time.perf_counter()
        path = saving.commit(keep=1, keep_every=0)
        committed, after = time.perf_counter() - start, memory()
        size, start = (path / checkpoint.MANIFEST).stat().st_size, time.perf_counter()
        checkpoint._contents(path)
        return {
            "ranks": ranks,
            "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
            "tensors": sum(KINDS.values()) * len(shapes),
            "parts_mb": written / 1e6,
            "manifest_mb": size / 1e6,
            "commit_seconds": committed,
            "read_seconds": time.perf_counter() - start,
            "peak_mb": after["VmHWM"] - before["VmRSS"],
        }


def _part(saving: Saving, shapes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> int:
    """What a rank of FSDP says: its rows of every tensor."""
    files: dict[str, Any] = {}
    boxes: dict[str, dict[str, Any]] = {}
    for kind, copies in KINDS.items():
        file = f"{kind}-{rank:05d}-of-{ranks:05d}.safetensors"
        files[file] = {"bytes": 1 << 24, "sha256": text_hash(file)}
        slots = [""] if copies == 1 else [":exp_avg", ":exp_avg_sq"]
        for name, shape in shapes.items():
            rows = -(-shape[0] // ranks)
            if rank * rows < shape[0]:
                for slot in slots:
                    offset = [rank * rows, *[0] * (len(shape) - 1)]
                    boxes.setdefault(kind, {})[f"{name}{slot}"] = {"shape": list(shape), "offsets": {file: offset}}
    text = checkpoint._render({"files": files, "boxes": boxes})
    saving._part(rank).write_text(text, encoding="utf-8")
    return len(text)


def rendezvous(ranks: int) -> dict[str, Any]:
    """Ranks that connect to one store, each telling its address and reading its neighbour's; one after the other, from one process.

    connected: how many were there when the time was over.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    start = time.perf_counter()
    patience = timedelta(seconds=60)
    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)
    everyone = [first]
    while len(everyone) < ranks and time.perf_counter() - start < RENDEZVOUS_SECONDS:
        everyone.append(TCPStore("127.0.0.1", first.port, is_master=False, wait_for_workers=False, timeout=patience))
    connected, start = time.perf_counter() - start, time.perf_counter()
    for rank, store in enumerate(everyone):
        store.set(f"address-{rank}", "127.0.0.1:29500")
    for rank, store in enumerate(everyone):
        store.get(f"address-{(rank + 1) % len(everyone)}")
    levels, reached = 0, 1
    while reached < ranks:
        levels, reached = levels + 1, peers.BRANCHES * reached + 1
    return {
        "ranks": ranks,
        "connected": len(everyone),
        "connect_seconds": connected,
        "exchange_seconds": time.perf_counter() - start,
        "peer_connections_of_a_rank_at_most": min(ranks - 1, peers.BRANCHES + 1),
        "peer_levels": levels,
    }


def continued(few: dict[str, Any], more: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The straight line through two rows, at another number of ranks."""
    share = (ranks - few["ranks"]) / (more["ranks"] - few["ranks"])
    line = {
        key: few[key] + share * (more[key] - few[key]) for key in ("parts_mb", "manifest_mb", "commit_seconds", "read_seconds", "peak_mb")
    }
    return {**more, "ranks": ranks, **line, "continued": True}


def measure() -> list[dict[str, Any]]:
    """A row for each simulation and number of ranks."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/shapes.bin"
        block = published(MILLION, np.random.default_rng(1)).tobytes()
        with open(path, "wb") as file:
            for _ in range(CLIPS // MILLION):
                file.write(block)
        for what, work, given, counts in (
            ("planning", planning, (path,), RANKS),
            ("manifest", manifest, (), MANIFEST_RANKS),
            ("rendezvous", rendezvous, (), RANKS[-1:]),
        ):
            for count in counts:
                with get_context("spawn").Pool(1) as pool:  # its own memory
                    rows.append({"simulated": what, **pool.apply(work, (*given, count))})
                print(json.dumps(rows[-1]), flush=True)
    few, more = (row for row in rows if row["simulated"] == "manifest")
    rows.append(continued(few, more, RANKS[-1]))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure()
