"""What the device could do at the most: matrix products, copies, launches. All shares of a ceiling are of these."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.gpu.measuring import seconds_of
from tests.gpu.record import Place, Report


def ceilings(place: Place) -> Iterator[Report]:
    """matmul_tflops (bfloat16, random numbers), copy_gb_per_second (bytes read and written), launch_us (of one small kernel, queued)."""
    yield Report(figures={"matmul_tflops": matmul_rate(place, torch.bfloat16) / 1e12})
    source = torch.empty((1 << 24) if place.toy else (1 << 31), dtype=torch.uint8, device=place.device).random_(0, 255)
    target = torch.empty_like(source)
    yield Report(figures={"copy_gb_per_second": 2 * source.numel() / seconds_of(lambda: target.copy_(source), place) / 1e9})
    small, count = torch.zeros(16, device=place.device), 100 if place.toy else 2000
    yield Report(figures={"launch_us": seconds_of(lambda: [small.add_(1) for _ in range(count)], place, rounds=3) / count * 1e6})


def matmul_rate(place: Place, dtype: torch.dtype) -> float:
    """Operations a second of the product of two square matrices of random numbers."""
    size = 256 if place.toy else 8192
    draw = torch.Generator(place.device).manual_seed(0)
    left, right = (torch.randn(size, size, device=place.device, generator=draw).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / seconds_of(lambda: torch.mm(left, right, out=out), place)
