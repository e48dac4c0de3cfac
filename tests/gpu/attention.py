"""Every attention backend against the formula in float64, on ragged packs, and what each takes beside the ceiling of products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sora.dit.attention.chunked import chunked_attention
from sora.dit.attention.dense import dense_attention
from sora.dit.attention.fastest import fastest, fastest_attention
from sora.dit.attention.flash import flash_attention
from sora.dit.attention.flex import flex_attention
from sora.dit.attention.layout import Attention, Layout, Mask, sees
from sora.dit.attention.op import Places, pairs, places
from sora.dit.attention.per_segment import per_segment_attention
from sora.dit.attention.varlen import varlen_attention
from sora.patches.packing import pack
from sora.tokens import Grid, Segments
from tests.gpu.ceilings import matmul_rate
from tests.gpu.measuring import error, seconds_of
from tests.gpu.record import Place, Report

SLOW = ("flex",)  # to compile: what needs none of it comes first, whole
TOLERANCE = 2e-2  # of bfloat16, relative to the norm, outputs and gradients


@dataclass(frozen=True)
class Case:
    """Grids of the clips, tokens of their captions (None: self-attention), heads of queries and of keys, width, and a mask."""

    grids: tuple[Grid, ...]
    words: tuple[int, ...] | None = None
    heads: int = 4
    kv_heads: int = 4
    width: int = 64
    reach: tuple[int, int, int] | None = None
    causal: bool = False


RAGGED = (Grid(3, 9, 16), Grid(1, 12, 12), Grid(1, 12, 12), Grid(5, 7, 3), Grid(1, 1, 1), Grid(9, 4, 4))
CASES = {
    "full": Case(RAGGED),
    "gqa": Case(RAGGED, heads=8, kv_heads=2),
    "cross": Case(RAGGED, words=(77, 5, 0, 130, 1, 16)),
    "odd_width": Case(RAGGED, width=36),
    "window": Case(RAGGED, reach=(1, 3, 3)),
    "block_causal": Case(RAGGED, reach=(-1, -1, -1), causal=True),
}


def backends(device: str) -> Mapping[str, Attention]:
    """All that there are by name; per_segment is torch's own attention of each clip by itself, on a CPU through our tiles."""
    return {
        "attend": fastest_attention,
        "varlen": varlen_attention,
        "flash": flash_attention,
        "per_segment": per_segment_attention if device == "cpu" else one_by_one,
        "chunked": chunked_attention,
        "flex": flex_attention,
    }


def one_by_one(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
    """torch's scaled_dot_product_attention, called for each clip."""
    repeats, parts = q.shape[1] // k.shape[1], []
    starts = zip(q_segments.host.tolist(), k_segments.host.tolist(), strict=True)
    for (first, first_key), (end, end_key) in pairwise(starts):
        queries, keys, values = q[first:end], k[first_key:end_key], v[first_key:end_key]
        if end == first or end_key == first_key:
            parts.append(torch.zeros_like(queries))
            continue
        seen = None
        if mask is not None:
            places_of = mask.layout.coordinates[first:end]
            seen = sees(places_of, places_of, reach=mask.reach, causal=mask.causal)
        heads = (x.transpose(0, 1)[None] for x in (queries, *(x.repeat_interleave(repeats, dim=1) for x in (keys, values))))
        parts.append(F.scaled_dot_product_attention(*heads, attn_mask=seen)[0].transpose(0, 1))
    return torch.cat(parts)


def attention(place: Place) -> Iterator[Report]:
    """error_CASE_BACKEND (the largest of outputs and gradients), then ms_CASE_BACKEND and share_CASE_BACKEND of the ceiling at a real size;
    first of what is there at once, then of what has to be compiled.

    chosen_CASE_is_fastest: 1 where `attend` takes the quickest backend, or one within 3 % of it.
    """
    broken, rate = list[str](), matmul_rate(place, torch.bfloat16)
    times: dict[str, dict[str, float]] = {}
    for slow in (False, True):
        for name, case in CASES.items():
            yield from _errors(name, case, place, slow=slow, broken=broken)
        for name, case in _large(place).items():
            yield from _timed(name, case, place, rate=rate, slow=slow, times=times.setdefault(name, {}))
    if broken:
        raise AssertionError(f"further than {TOLERANCE} from the formula: {'; '.join(broken)}")


def _errors(name: str, case: Case, place: Place, *, slow: bool, broken: list[str]) -> Iterator[Report]:
    """error_CASE_BACKEND of those that are slow to begin, or of the others; what is wrong is added to `broken`."""
    compiles = fastest(torch.device(place.device), torch.bfloat16, case.width, masked=case.reach is not None) is flex_attention
    if slow:
        torch._dynamo.reset()  # else the kernels of one case count against those of the next, and beyond some eight none is compiled
    for backend, function in backends(place.device).items():
        if (backend in SLOW or (backend == "attend" and compiles)) != slow:
            continue
        try:
            found = wrong(function, case, place.device)
        except (ValueError, RuntimeError, NotImplementedError, ImportError, AttributeError) as refused:
            said = str(refused).splitlines()[0][:160] if str(refused) else type(refused).__name__
            yield Report(note=f"{name}: {backend} does not run here ({said})")
            if backend == "attend" or (place.device == "cuda" and not isinstance(refused, ValueError)):
                broken.append(f"{backend} in {name}: {type(refused).__name__} {said}")
            continue
        yield Report(figures={f"error_{name}_{backend}": found})
        if not found <= TOLERANCE:
            broken.append(f"{backend} in {name}: {found:.3g}")


def wrong(function: Attention, case: Case, device: str) -> float:
    """The largest relative error of outputs and gradients in bfloat16, beside the formula in float64 on the CPU."""
    there = tuple(x.to(device).bfloat16() for x in tensors(case))
    mine = _pulled(function, there, *(each.to(device) for each in segmented(case)), masked(case, device))
    return max(error(found, wanted) for found, wanted in zip(mine, exact(case), strict=True) if wanted.numel() and wanted.norm())


@cache
def exact(case: Case) -> tuple[Tensor, ...]:
    """The formula's output and gradients, once for all backends: it is most of their work on a CPU."""
    inputs = tuple(x.double() for x in tensors(case))
    return _pulled(dense_attention, inputs, *segmented(case), masked(case, "cpu"))


def _pulled(function: Attention, inputs: tuple[Tensor, ...], *about) -> tuple[Tensor, ...]:
    """The output and the gradients for a fixed cotangent."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = function(*inputs, *about)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.device, out.dtype)
    return (out, *torch.autograd.grad(out, inputs, weight))


def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, float32 with values that bfloat16 holds."""
    draw = torch.Generator().manual_seed(0)
    rows = sum(grid.tokens for grid in case.grids)
    keys = rows if case.words is None else sum(case.words)
    shapes = ((rows, case.heads, case.width), *((keys, case.kv_heads, case.width),) * 2)
    q, k, v = (torch.randn(shape, generator=draw).bfloat16().float() for shape in shapes)
    return q, k, v


def segmented(case: Case) -> tuple[Segments, Segments]:
    tokens = Segments.of([*(grid.tokens for grid in case.grids), 0])
    return tokens, tokens if case.words is None else Segments.of([*case.words, 0])


def masked(case: Case, device: str) -> Mask | None:
    if case.reach is None:
        return None
    clips, total = [torch.zeros(grid.tokens, 1) for grid in case.grids], sum(grid.tokens for grid in case.grids)
    packed = pack(clips, case.grids, seconds=[torch.zeros(grid.t) for grid in case.grids], budget=total, max_clips=len(clips))
    return Mask(Layout.of(packed.to(device)), case.reach, case.causal)


def _large(place: Place) -> dict[str, Case]:
    """A pack of 32,768 tokens of mixed shapes with heads of 128; of a few on a CPU."""
    if place.toy:
        return {"full": CASES["full"], "block_causal": CASES["block_causal"]}
    grids = (Grid(21, 30, 26), Grid(13, 26, 30), *[Grid(1, 32, 32)] * 4, Grid(4, 26, 12))
    shape = {"heads": 12, "kv_heads": 12, "width": 128}
    return {
        "full": Case(grids, **shape),
        "cross": Case(grids, words=(128,) * len(grids), **shape),
        "gqa": Case(grids, heads=12, kv_heads=2, width=128),
        "window": Case(grids, reach=(1, 8, 8), **shape),
        "block_causal": Case(grids, reach=(-1, -1, -1), causal=True, **shape),
    }


def _timed(name: str, case: Case, place: Place, *, rate: float, slow: bool, times: dict[str, float]) -> Iterator[Report]:
    """ms and share of those that are slow to begin, or of the others, kept in `times`; when all are there, whether the choice was right."""
    q, k, v = (x.to(place.device).bfloat16().requires_grad_() for x in tensors(case))
    segments, mask = tuple(each.to(place.device) for each in segmented(case)), masked(case, place.device)
    grad = torch.randn_like(q)
    about = Places(segments[0].host, segments[1].host, q, q, *places(*segments, mask)[4:])
    flops = 14 * pairs(about) * case.heads * case.width  # two products forwards, five backwards
    if slow:
        torch._dynamo.reset()
    for backend, function in backends(place.device).items():
        if backend == "attend" or (backend in SLOW) != slow or (backend == "chunked" and place.device == "cuda"):
            continue  # the one is another's name, the last is for CPUs: right everywhere, and of thousands of small products
        try:
            times[backend] = seconds_of(lambda function=function: _step(function, (q, k, v), grad, *segments, mask), place, rounds=5)
        except ValueError:
            continue  # it does not compute this, as was told above
        except (RuntimeError, NotImplementedError, ImportError, AttributeError) as refused:
            yield Report(note=f"{name}: {backend} was not timed: {type(refused).__name__} {str(refused)[:160]}")
            continue
        share = flops / times[backend] / rate
        yield Report(figures={f"ms_{name}_{backend}": times[backend] * 1e3, f"share_{name}_{backend}": share})
    chosen = fastest(q.device, q.dtype, case.width, masked=mask is not None).__name__.removesuffix("_attention")
    if slow and chosen in times:
        right = float(times[chosen] <= 1.03 * min(times.values()))
        yield Report(figures={f"chosen_{name}_is_fastest": right}, note=f"attend takes {chosen}")


def _step(function: Attention, inputs: tuple[Tensor, ...], grad: Tensor, *about) -> None:
    torch.autograd.grad(function(*inputs, *about), inputs, grad)
