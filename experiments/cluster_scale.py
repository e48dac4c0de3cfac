"""What a launch on up to 4,096 ranks asks of a rank and of the first one, simulated on one machine: `python -m experiments.cluster_scale`.

Planning: 100 million clips and as many packs a step as ranks. Manifest: what the first rank reads, writes and holds of a checkpoint of a
network of 9 billion weights whose every tensor is in pieces on every rank, in the format of `sora.runs.checkpoint`, and how long a rank
takes to find its own pieces in it. Rendezvous: ranks that all meet at one TCPStore, and the connections that
ranks hold to know of one another's death.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore

from experiments.benchmarks.plan import MILLION, PUBLISHED_BUDGET, memory, of, published
from sora.data.plan.clips import LatentClips
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Packed
from sora.runs import manifest
from sora.runs.checkpoint import Saving, TrainingState
from sora.runs.shards import Stored
from sora.system.files import text_hash
from sora.tokens import Grid
from sora.training.faults import peers

RANKS = (64, 512, 4096)
AT_ONCE = 256  # ranks that connect together
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


def merging(ranks: int) -> dict[str, Any]:
    """Merging what every rank says of its files into one manifest, and reading that again."""
    shapes = {kind: slots(copies) for kind, copies in KINDS.items()}
    with tempfile.TemporaryDirectory() as name:
        saving = Saving(Path(name), TrainingState(step=1, samples=0, tokens=0, tensors={}), rank=0, ranks=ranks)
        saving._staging.mkdir()
        saving._names = {kind: sorted(found) for kind, found in shapes.items()}
        written = sum(_part(saving, shapes, rank, ranks) for rank in range(ranks))
        before, start = memory(), time.perf_counter()
        path = saving.commit(keep=1, keep_every=0)
        committed, after = time.perf_counter() - start, memory()
        size, start = (path / manifest.MANIFEST).stat().st_size, time.perf_counter()
        found = manifest.contents(path)
        read, start = time.perf_counter() - start, time.perf_counter()
        for kind, of_kind in shapes.items():
            stored = Stored(path, manifest.layouts(path, found, kind))
            for tensor, (offset, held) in rows(of_kind, ranks - 1, ranks).items():
                assert all(
                    piece.file.startswith(f"{kind}-{ranks - 1:05d}") for piece in stored._touching(stored._layouts[tensor], offset, held)
                )
        return {
            "ranks": ranks,
            "parameters": sum(int(np.prod(shape)) for shape in shapes["model"].values()),
            "tensors": sum(map(len, shapes.values())),
            "parts_mb": written / 1e6,
            "manifest_mb": size / 1e6,
            "commit_seconds": committed,
            "read_seconds": read,
            "find_seconds": time.perf_counter() - start,
            "peak_mb": after["VmHWM"] - before["VmRSS"],
        }


def slots(copies: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a kind that has so many for each weight."""
    named = [""] if copies == 1 else [":exp_avg", ":exp_avg_sq"]
    return {f"{name}{slot}": shape for name, shape in tensors().items() for slot in named}


def rows(shapes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The offset and shape of what a rank of FSDP has of each tensor: its rows, if there are any for it."""
    found = {}
    for name, shape in shapes.items():
        each = -(-shape[0] // ranks)
        if (first := rank * each) < shape[0]:
            found[name] = (first, *[0] * (len(shape) - 1)), (min(each, shape[0] - first), *shape[1:])
    return found


def _part(saving: Saving, shapes: dict[str, dict[str, tuple[int, ...]]], rank: int, ranks: int) -> int:
    """What a rank says; how long that is."""
    files, told = {}, {}
    for kind, found in shapes.items():
        file = f"{kind}-{rank:05d}-of-{ranks:05d}.safetensors"
        files[file] = {"bytes": 1 << 24, "sha256": text_hash(file)}
        names = saving._names[kind]
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for number, name in enumerate(names):
            of_shape.setdefault(found[name], []).append(number)
        held = rows({str(number): shape for number, shape in enumerate(of_shape)}, rank, ranks)
        alike = list(of_shape.items())
        boxes = [[alike[int(number)][0], "F32", offset, size, alike[int(number)][1]] for number, (offset, size) in held.items()]
        told[kind] = {"of": manifest._hash(names), "boxes": boxes}
    text = manifest.compact({"files": files, "tensors": told})
    saving._part(rank).write_text(text, encoding="utf-8")
    return len(text)


def rendezvous(ranks: int) -> dict[str, Any]:
    """Ranks that connect to one store, `AT_ONCE` of them together, each telling its address and reading its neighbour's.

    A store asks for the name of whoever connects, and where no name server answers, that takes seconds at times: one after the other, they
    would measure that.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    start, patience = time.perf_counter(), timedelta(seconds=60)
    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)

    def connected(_: int) -> TCPStore:
        return TCPStore("127.0.0.1", first.port, is_master=False, wait_for_workers=False, timeout=patience)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        everyone = [first, *pool.map(connected, range(1, ranks))]
    took, start = time.perf_counter() - start, time.perf_counter()
    for rank, store in enumerate(everyone):
        store.set(f"address-{rank}", "127.0.0.1:29500")
    for rank, store in enumerate(everyone):
        store.get(f"address-{(rank + 1) % ranks}")
    levels, reached = 0, 1
    while reached < ranks:
        levels, reached = levels + 1, peers.BRANCHES * reached + 1
    return {
        "ranks": ranks,
        "connected": len(everyone),
        "connect_seconds": took,
        "exchange_seconds": time.perf_counter() - start,
        "peer_connections_of_a_rank_at_most": min(ranks - 1, peers.BRANCHES + 1),
        "peer_levels": levels,
    }


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
            ("manifest", merging, (), RANKS),
            ("rendezvous", rendezvous, (), RANKS[-1:]),
        ):
            for count in counts:
                with get_context("spawn").Pool(1) as pool:  # its own memory
                    rows.append({"simulated": what, **pool.apply(work, (*given, count))})
                print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure()
