"""Measures on each rank the time of its own part of a step, and its memory.

Ranks wait for one another in every step, so all their steps take as long as the slowest rank's. A rank's own time is what it spends before
it waits: for data, for preparing them (encoding, drawing noise, moving), and in the forward of its blocks. Sharded weights have been
gathered when a block's forward begins. The backward is not measured; it takes longer where the forward does. Compiled blocks are measured
together, by the forward of the whole task, which includes waits for sharded weights. Ranks that share packs (context, tensor) wait for one
another inside blocks, so only their group can be identified.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sora.system import distributed as ranks
from sora.system import files as storage

PARTS = ("data", "prepare", "compute")  # of a rank's own time
FILE = "ranks.json"  # in the run folder: the latest numbers of every rank
HOST_BYTES = 64


class Stopwatch:
    """Measures seconds between `start` and `stop` on the device's clock, without waiting for a GPU; only while `open`."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._since, self._seconds, self.open = 0.0, 0.0, False
        self._marks: list[torch.cuda.Event] = []

    def start(self, *_: Any) -> None:
        """Start; takes any arguments, because it is a hook."""
        if self.open and self._on_gpu:
            self._mark()
        elif self.open:
            self._since = time.perf_counter()

    def stop(self, *_: Any) -> None:
        if self.open and self._on_gpu:
            self._mark()
        elif self.open:
            self._seconds += time.perf_counter() - self._since

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def take(self) -> float:
        """The seconds since the last call. On a GPU, call it when the measured work is known to be done."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        seconds = self._seconds + sum(first.elapsed_time(second) for first, second in pairs) / 1e3
        self._seconds, self._marks = 0.0, []
        return seconds


class Gauges:
    """The timings of this rank. folder: of the run; the first rank writes `ranks.json` there, every `every` seconds."""

    def __init__(self, folder: Path, *, every: float = 60.0) -> None:
        self._path, self._every, self._written = Path(folder) / FILE, every, -every
        self._hooks: list[RemovableHandle] = []
        self._steps: list[tuple[float, float, float]] = []
        self._device = torch.device("cpu")
        self._watch = Stopwatch(self._device)
        self._hosts: list[str] = []
        self._told, self._medians, self._slowest = 0, np.zeros(0), np.zeros(0, dtype=np.int64)  # totals over all calls of `told`, by rank
        self.slowest = ""  # the slowest rank, in words; "" for one rank

    def attach(self, task: nn.Module, device: torch.device) -> None:
        """Measure the blocks of a task on its training device. Every rank must call this."""
        self._device, self._watch = device, Stopwatch(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for unit in measured(task):
            # after the hooks that gather the unit's weights, before those that free them
            self._hooks += [unit.register_forward_pre_hook(self._watch.start), unit.register_forward_hook(self._watch.stop, prepend=True)]
        self._hosts = _hosts(device)

    def detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def begin(self) -> None:
        """A step begins: measure what is computed from here on."""
        self._watch.open = True

    def end(self, *, data: float, prepare: float) -> None:
        """A step has ended, also on the device. data, prepare: seconds of waiting for data, and of preparing packs."""
        self._watch.open = False
        self._steps.append((data, prepare, self._watch.take()))

    def told(self) -> dict[str, Any]:
        """The numbers of all ranks over the steps since the last call. Every rank must call this, in the same order.

        memory: GB, the maximum over ranks. With several ranks: seconds_p50 and seconds_p95, percentiles over steps of a rank's own time,
        each as [fastest, median, slowest rank]; slowest: the rank with the largest p50; slowest_host; slowest_ratio: its p50 over the
        median rank's; slowest_by: the part of its own time with the largest excess.
        """
        steps, held = np.array(self._steps or [(0.0, 0.0, 0.0)]), memory(self._device)
        self._steps = []
        if not ranks.several():
            return {name: round(value, 3) for name, value in held.items()}
        own = steps.sum(axis=1)
        # medians of the parts, too, so that a single disturbed step makes no rank slow
        mine = [*np.percentile(own, (50, 95)), *np.median(steps, axis=0), *held.values()]
        each = torch.stack(ranks.gathered(torch.tensor(mine, dtype=torch.float64, device=self._device))).cpu().numpy()
        memories = {name: round(float(value), 3) for name, value in zip(held, each[:, 5:].max(axis=0), strict=True)}
        self._remember(each[:, 0])
        self._write(each, list(held))
        return memories | self._compared(each)

    def _remember(self, medians: np.ndarray) -> None:
        """Add to the totals; single values of thousands of ranks would be too many in a long run."""
        if not self._told:
            self._medians, self._slowest = np.zeros(len(medians)), np.zeros(len(medians), dtype=np.int64)
        self._told += 1
        self._medians += medians
        self._slowest[int(medians.argmax())] += 1

    def _compared(self, each: np.ndarray) -> dict[str, Any]:
        medians, slowest = each[:, 0], int(each[:, 0].argmax())
        excess = each[slowest, 2:5] - _middle(each[:, 2:5])
        ratio = _ratio(medians, slowest)
        self.slowest = f"slowest {slowest}@{self._hosts[slowest]} {ratio:.2f}x"
        return {
            "seconds_p50": _spread(medians),
            "seconds_p95": _spread(each[:, 1]),
            "slowest": slowest,
            "slowest_host": self._hosts[slowest],
            "slowest_ratio": round(ratio, 3),
            "slowest_by": PARTS[int(excess.argmax())],
        }

    def _write(self, each: np.ndarray, memories: Sequence[str]) -> None:
        """Write the table of all ranks; a full disk loses only the table."""
        if not ranks.first() or time.monotonic() - self._written < self._every:
            return
        self._written = time.monotonic()
        columns = ("seconds_p50", "seconds_p95", *PARTS, *memories)
        found = enumerate(zip(self._hosts, each, strict=True))
        rows = [{"rank": rank, "host": host} | _rounded(columns, row) for rank, (host, row) in found]
        try:
            storage.write_json(self._path, rows)
        except (OSError, ValueError) as error:  # ValueError: a folder or a pipe stands in its place
            print(f"could not write {self._path}: {error}; training goes on without it")

    def summary(self) -> str | None:
        """A line for the end of a run with the slowest rank over all steps. None for one rank."""
        if not self._told:
            return None
        medians = self._medians / self._told
        slowest = int(medians.argmax())
        share = self._slowest[slowest] / self._told
        return (
            f"the slowest of {len(medians)} ranks was {slowest} on {self._hosts[slowest]}: {_ratio(medians, slowest):.2f} x the median "
            f"rank's time for a step, the slowest in {share:.0%} of the lines of metrics.jsonl"
        )


def measured(task: nn.Module) -> list[nn.Module]:
    """The modules to time: the blocks in all lists of blocks, or the task if there are none or they are compiled."""
    units: dict[str, nn.Module] = {}
    for name, module in task.named_modules():
        inside = any(name.startswith(f"{unit}.") for unit in units)
        if isinstance(module, nn.ModuleList) and not inside:
            units |= {f"{name}.{number}": block for number, block in enumerate(module)}
    # a hook on a compiled module would become part of its graph
    compiled = any(unit._compiled_call_impl is not None for unit in units.values())
    return list(units.values()) if units and not compiled else [task]


def memory(device: torch.device) -> dict[str, float]:
    """GB of this process. On a GPU: allocated and reserved now, and the peak since the last call; on a CPU: the peak of resident memory."""
    if device.type == "cuda":
        found = torch.cuda.memory_stats(device)
        names = {"allocated": "allocated_bytes.all.current", "reserved": "reserved_bytes.all.current", "peak": "allocated_bytes.all.peak"}
        torch.cuda.reset_peak_memory_stats(device)
        return {f"memory_{name}": found.get(key, 0) / 1e9 for name, key in names.items()}
    try:
        found = dict(re.findall(rb"(VmRSS|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_bytes()))
    except OSError:  # no Linux
        found = {}
    return {name: int(found.get(key, 0)) * 1024 / 1e9 for name, key in (("memory_resident", b"VmRSS"), ("memory_peak", b"VmHWM"))}


def _hosts(device: torch.device) -> list[str]:
    name = os.fsencode(socket.gethostname())[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    return [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in ranks.gathered(torch.tensor(list(name), device=device))]


def _middle(values: np.ndarray) -> Any:
    """The median over ranks; of two ranks the faster, to compare the slower one with."""
    return np.percentile(values, 50, axis=0, method="lower")


def _ratio(medians: np.ndarray, slowest: int) -> float:
    return float(medians[slowest] / max(1e-9, float(_middle(medians))))


def _spread(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in (values.min(), _middle(values), values.max())]


def _rounded(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}
