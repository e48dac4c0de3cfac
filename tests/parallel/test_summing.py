"""Sums over the packs of a step: the same bits on any power of two of ranks, by the tree that `sora.parallel.summing` tells of."""

from __future__ import annotations

import gc
import math
import random
import weakref

import pytest
import torch
from torch import nn

from sora.parallel import summing
from tests.training.groups import in_ranks

WIDE = 1e6  # of the ratio of gradients: sums in another order differ in many of their bits


def gradients(packs: int, size: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(packs)
    return [torch.randn(size, generator=draw) * WIDE ** torch.rand(size, generator=draw) for _ in range(packs)]


def tree(leaves: list[torch.Tensor]) -> torch.Tensor:
    """The definition, by itself: even and odd places apart, as long as their number is even; then one after another."""
    if len(leaves) % 2 == 0:
        return tree(leaves[::2]) + tree(leaves[1::2])
    found = leaves[0].clone()
    for leaf in leaves[1:]:
        found += leaf
    return found


def accumulated(leaves: list[torch.Tensor]) -> torch.Tensor:
    """What `learned` leaves in the gradient, when each pack adds its own as a backward does."""
    value, order = nn.Parameter(torch.zeros_like(leaves[0])), []

    def learn(pack: int) -> None:
        order.append(pack)
        (value * leaves[pack]).sum().backward()

    summing.learned([value], len(leaves), learn)
    assert sorted(order) == list(range(len(leaves))) and value.grad is not None
    return value.grad


def split(leaves: list[torch.Tensor], ranks: int) -> torch.Tensor:
    """As `ranks` ranks would: each sums its own packs, and of ranks those a half apart meet first."""
    mine = [accumulated(leaves[rank::ranks]) for rank in range(ranks)]
    while len(mine) > 1:
        half = len(mine) // 2
        mine = [mine[rank] + mine[rank + half] for rank in range(half)]
    return mine[0]


@pytest.mark.parametrize("packs", [1, 2, 3, 4, 6, 8, 12, 16, 24])
def test_every_power_of_two_of_ranks_makes_the_same_additions(packs):
    leaves = gradients(packs, 999)
    wanted = tree(leaves)
    for ranks in (1, 2, 4, 8, 16):
        if packs % ranks == 0:
            assert torch.equal(split(leaves, ranks), wanted), ranks
    if packs >= 4:  # one after another, as before, they are not the same
        assert not torch.equal(sum(leaves[1:], leaves[0]), wanted)


@pytest.mark.parametrize(("packs", "most"), [(1, 0), (2, 0), (3, 0), (4, 1), (8, 2), (12, 2), (16, 3)])
def test_one_set_of_gradients_waits_for_each_level_of_the_tree(packs, most, monkeypatch):
    waiting, seen = [0], [0]
    taken, given = summing._taken, summing._give_back

    def take(parameters):
        waiting[0] += 1
        seen[0] = max(seen[0], waiting[0])
        return taken(parameters)

    def give(parameters, kept):
        waiting[0] -= 1
        given(parameters, kept)

    monkeypatch.setattr(summing, "_taken", take)
    monkeypatch.setattr(summing, "_give_back", give)
    accumulated(gradients(packs, 5))
    assert (waiting[0], seen[0]) == (0, most) and summing.waiting(packs) == most


def test_nothing_of_a_step_is_kept_alive_by_what_sums_it():
    """Packs lie in memory shared with loader workers: two thousand steps had six hundred open files until garbage was looked for."""

    class Pack:
        pass

    def stepped() -> list[weakref.ref]:
        packs, value = [Pack() for _ in range(8)], nn.Parameter(torch.zeros(2))

        def learn(number: int) -> None:
            assert packs[number] is not None
            value.sum().backward()

        summing.learned([value], 8, learn)
        return [weakref.ref(pack) for pack in packs]

    gc.disable()
    try:
        assert not any(ref() is not None for ref in stepped())
    finally:
        gc.enable()


def test_a_parameter_that_only_some_packs_use_has_the_sum_of_those():
    used, seldom, never = (nn.Parameter(torch.zeros(3)) for _ in range(3))

    def learn(pack: int) -> None:
        ((used * 2.0**pack).sum() + (seldom.sum() if pack in (1, 6) else 0)).backward()

    summing.learned([used, seldom, never], 8, learn)
    assert used.grad is not None and used.grad.tolist() == [255.0] * 3
    assert seldom.grad is not None and seldom.grad.tolist() == [2.0] * 3 and never.grad is None


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_ranks_sum_in_the_order_of_the_tree(tmp_path, ranks, monkeypatch):
    def work(rank: int) -> None:
        for size in (1, 3, 8, 1001):
            leaves = gradients(ranks, size)
            found = summing.summed(leaves[rank].clone())
            wanted = leaves
            while len(wanted) > 1:
                half = len(wanted) // 2
                wanted = [wanted[place] + wanted[place + half] for place in range(half)]
            assert torch.equal(found, wanted[0]), size
        monkeypatch.setattr(summing, "CHUNK", 10)
        parts = {str(place): nn.Parameter(torch.zeros(size)) for place, size in enumerate((4, 7, 30, 1, 2, 5))}
        for place, (name, value) in enumerate(parts.items()):
            if name == "4" or (name == "3" and rank):  # of nobody, and of all but the first
                continue
            value.grad = torch.full_like(value, 2.0 ** (rank + place))
        summing.over_ranks(parts)
        whole = 2.0**ranks - 1
        for place, (name, value) in enumerate(parts.items()):
            if name == "4":
                assert value.grad is None
                continue
            expected = (1.0 if name == "3" else whole) * 2.0**place
            assert value.grad is not None and value.grad.shape == value.shape and value.grad.tolist() == [expected] * len(value), name

    in_ranks(ranks, tmp_path, work)


def test_a_sum_of_losses_does_not_depend_on_their_order():
    draw = random.Random(0)
    values = [draw.uniform(-1, 1) * 10 ** draw.randint(-9, 9) for _ in range(64)]
    found = {summing.exact(draw.sample(values, len(values))) for _ in range(50)}
    assert len(found) == 1 and len({sum(draw.sample(values, len(values))) for _ in range(50)}) > 1
    for bad in (math.nan, math.inf):
        assert not math.isfinite(summing.exact([1.0, bad, 2.0]))
    assert math.isnan(summing.exact([math.inf, -math.inf]))
