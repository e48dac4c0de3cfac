"""Times and memory of a device: events on a GPU, the wall clock on a CPU; medians, after a warm-up."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.gpu.record import Place


def seconds_of(step: Callable[[], Any], place: Place, *, rounds: int = 10, warm: int = 2) -> float:
    """The median time of a call, in seconds."""
    return in_turn({"": step}, place, rounds=rounds, warm=warm)[""]


def in_turn(steps: Mapping[str, Callable[[], Any]], place: Place, *, rounds: int = 10, warm: int = 2) -> dict[str, float]:
    """The median time of each, in seconds, run one after another in rounds, so that a clock that drifts does so for all.

    At toy sizes each runs once: its time says nothing anyway.
    """
    rounds, warm = (1, 0) if place.toy else (rounds, warm)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm + rounds):
        for name, step in steps.items():
            taken = _timed(step, place.device)
            if number >= warm:
                times[name].append(taken)
    return {name: statistics.median(each) for name, each in times.items()}


def _timed(step: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    step()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_bytes(step: Callable[[], Any], place: Place) -> int | None:
    """The most that was allocated during a call; None on a CPU, where nobody counts it."""
    if place.device != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def step_bytes(step: Callable[[], Any], place: Place) -> int | None:
    """The most that a call allocated beside what lay there before; None on a CPU."""
    if place.device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    held = peak_bytes(step, place)
    return None if held is None else held - before


def let_go(place: Place) -> None:
    """Free what networks hold that are no longer used: a module and its trainer know one another, and lie there until looked for."""
    gc.collect()
    if place.device == "cuda":
        torch.cuda.empty_cache()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; NaN stays NaN."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))
