"""Permutations as functions are permutations, follow from what they are made of, and look like chance."""

import numpy as np
import pytest

from sora.data.plan import order
from sora.data.plan.order import Feistel, permutation, turns


def keys(seed):
    return np.random.default_rng(seed).integers(1 << 63, size=8, dtype=np.int64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 1000, 4095, 4096, 4097, 100_003])
def test_every_place_has_a_clip_of_its_own(size):
    found = Feistel(size, keys(size))(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_places_may_be_asked_for_one_by_one_and_far_out():
    size = 10**11 + 7
    whole = Feistel(size, keys(0))
    places = np.array([0, 1, size // 2, size - 1])
    together = whole(places)
    assert [int(whole(places[i : i + 1])[0]) for i in range(4)] == together.tolist()
    assert len(set(together.tolist())) == 4 and (together >= 0).all() and (together < size).all()


@pytest.mark.parametrize("drawn", [True, False])
def test_an_order_follows_from_stream_seed_epoch_and_size(monkeypatch, drawn):
    monkeypatch.setattr(order, "DRAWN", 1 << 20 if drawn else 0)

    def listed(stream="a", seed=0, epoch=0):
        return tuple(permutation(stream, seed=seed, epoch=epoch, size=50)(np.arange(50)).tolist())

    assert listed() == listed()
    assert len({listed(), listed(stream="b"), listed(seed=1), listed(epoch=1)}) == 4


def test_computed_orders_look_like_chance():
    """Where a clip goes is uniform, neighbours part, and how many stay put is about one: over 300 orders of 1,000."""
    size, times = 1000, 300
    orders = np.stack([Feistel(size, keys(number))(np.arange(size)) for number in range(times)])
    cells = np.bincount((orders * 10 // size)[:, ::97].ravel(), minlength=10)
    expected = cells.sum() / 10
    assert ((cells - expected) ** 2 / expected).sum() < 27.9  # chi-square of 9, one in a thousand
    assert abs(np.mean(orders == np.arange(size)) * size - 1) < 0.25
    gaps = np.abs(np.diff(orders, axis=1))
    assert abs(gaps.mean() / size - 1 / 3) < 0.01
    ranks = np.corrcoef(orders[:100])
    assert abs(ranks[np.triu_indices(100, 1)]).max() < 0.17


def test_turns_meet_their_shares_and_lie_apart():
    assert np.bincount(turns(np.array([0.5, 0.499, 0.001]), 1024)).tolist() == [512, 511, 1]
    served = turns(np.array([0.75, 0.25]), 1024)
    assert {int((served[start : start + 4] == 1).sum()) for start in range(0, 1024, 4)} == {1}
