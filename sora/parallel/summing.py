"""Sums the gradients of a step's packs in an order that does not depend on how many ranks share the step.

A floating-point sum depends on the order of additions. So the packs of a step are the leaves of one binary tree. Packs whose index has the
same remainder modulo n form a branch, for n = 1, 2, 4, ... as long as n divides the number of packs; the packs of a last branch are added
one after another. With R ranks, R a power of two, rank r has the packs of remainder r modulo R, which form a branch. The branches above it
join ranks with the same remainder modulo R / 2, R / 4, ... So 1, 2, 4, ... ranks do the same additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sora.system.torch_private import foreach_add_, foreach_copy_

CHUNK = 2**24  # gradient elements that ranks exchange at a time; sending takes as much memory again


def power_of_two(count: int) -> bool:
    return count > 0 and count & (count - 1) == 0


def exact(values: Sequence[float]) -> float:
    """The correctly rounded sum, whatever the order; not finite if any value is not."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def waiting(count: int) -> int:
    """The largest number of gradient sets that wait in memory while `learned` goes through `count` packs."""
    levels = 0
    while count % 2 == 0 and count > 2:
        levels, count = levels + 1, count // 2
    return levels


def learned(parameters: Iterable[nn.Parameter], count: int, learn: Callable[[int], None]) -> None:
    """Call `learn(pack)` once for each of `count` packs; it adds to the gradients, which end as the sum in the tree's order.

    A branch waits in memory for its other half: one set of gradients for each level of the tree but the last, which is log2(count) - 1 for
    a power of two, and none for two packs.
    """
    _branch(range(count), learn, list(parameters))


def _branch(packs: range, learn: Callable[[int], None], trained: Sequence[nn.Parameter]) -> None:
    if len(packs) % 2 or len(packs) == 2:
        for pack in packs:
            learn(pack)
        return
    _branch(packs[::2], learn, trained)
    waiting = _taken(trained)
    _branch(packs[1::2], learn, trained)
    _give_back(trained, waiting)


def _taken(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    found = [value.grad for value in parameters]
    for value in parameters:
        value.grad = None
    return found


def _give_back(parameters: Sequence[nn.Parameter], waiting: Sequence[Tensor | None]) -> None:
    both = [(value.grad, other) for value, other in zip(parameters, waiting, strict=True) if value.grad is not None and other is not None]
    if both:
        foreach_add_([grad for grad, _ in both], [other for _, other in both])
    for value, other in zip(parameters, waiting, strict=True):
        if value.grad is None:
            value.grad = other


def over_ranks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Replace each rank's gradients by their sum over all ranks, in the tree's order. Every rank must call this.

    The number of ranks is a power of two. A parameter that has no gradient on any rank gets none. Each rank sends 2 (R - 1) / R of the
    gradients, as with any all-reduce.
    """
    values = list(parameters.values())
    there = torch.tensor([float(value.grad is not None) for value in values], device=values[0].device)
    dist.all_reduce(there)
    found = [value for value, ranks in zip(values, there.tolist(), strict=True) if ranks]
    for value in found:
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    for group in _chunks([value.grad for value in found if value.grad is not None]):
        flat = torch.cat([grad.reshape(-1) for grad in group])
        parts = summed(flat).split([grad.numel() for grad in group])
        foreach_copy_(group, [part.view_as(grad) for part, grad in zip(parts, group, strict=True)])


def _chunks(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups of consecutive gradients of one dtype, with up to `CHUNK` elements each; a larger tensor is a group of its own."""
    found: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if gradient.numel() > room or gradient.dtype != found[-1][0].dtype:
            found.append([])
            room = CHUNK
        found[-1].append(gradient)
        room -= gradient.numel()
    return found


def summed(flat: Tensor) -> Tensor:
    """The sum of all ranks' vectors of one length, in the tree's order, by recursive halving and doubling (Rabenseifner 2004).

    Two ranks that are R / 2 apart each send one half of their vector and add the other; then ranks R / 4 apart do so with that half, until
    each rank has a part of the full sum. The parts return the same way. An addition of two numbers does not depend on their order.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    assert power_of_two(ranks), f"{ranks} ranks are no tree"
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % ranks))
    first, size, apart = 0, len(padded), ranks // 2
    while apart:
        size //= 2
        kept, sent = (first + size, first) if rank & apart else (first, first + size)
        received = torch.empty_like(padded[:size])
        _swap(padded[sent : sent + size], received, rank ^ apart)
        padded[kept : kept + size] += received
        first, apart = kept, apart // 2
    apart = 1
    while apart < ranks:
        other = first - size if rank & apart else first + size
        received = torch.empty_like(padded[:size])
        _swap(padded[first : first + size], received, rank ^ apart)
        padded[other : other + size] = received
        first, size, apart = min(first, other), 2 * size, 2 * apart
    return padded[: len(flat)]


def _swap(sent: Tensor, received: Tensor, partner: int) -> None:
    given = [dist.P2POp(dist.isend, sent.contiguous(), partner), dist.P2POp(dist.irecv, received, partner)]
    for exchange in dist.batch_isend_irecv(given):
        exchange.wait()
