"""Floors and p values by random splits of the pool: right for any distribution, size and dimension, and the same whatever the order."""

import numpy as np
import pytest
import torch

from sora.metrics.distribution.cautions import cautions
from sora.metrics.distribution.comparison import compare_features
from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.distribution.kernel import KVD, kernel_distance, kernel_splits
from sora.metrics.distribution.permutation import frechet_splits, in_order, law_error, no_difference, pooled
from sora.metrics.distribution.pool import Pool


def sample(n, d, draw, power=0.5):
    return torch.randn(n, d, dtype=torch.float64, generator=draw) * torch.arange(1, d + 1, dtype=torch.float64) ** -power


def uneven(p, grid):
    """The largest distance of the distribution of p from the uniform one on so many steps (Kolmogorov and Smirnov)."""
    steps = np.arange(1, grid + 1) / grid
    return np.abs((np.asarray(p) <= steps[:, None] + 1e-9).mean(axis=1) - steps).max()


def figures(real, fake, **settings):
    usual = {"key": "x", "ddof": 1, "seed": 0, "bootstrap": 0, "permutations": 39, "neighbours": 5}
    return compare_features(real, fake, **{**usual, **settings})


# Fewer clips than dimensions, more, one set of each, and so many that no Gram matrix is made.
@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 5), (2, 9, 3), (16, 16, 40), (40, 16, 20), (60, 7, 20), (90, 90, 20), (100, 30, 6)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_a_pool_gives_the_distances_of_its_parts(n, m, d, ddof):
    draw = torch.Generator().manual_seed(n + m)
    both = pooled(sample(n, d, draw) + 100, 1.2 * sample(m, d, draw) + 100.1)
    pool, labels = Pool(both.features, ddof=ddof), both.labelled(6, seed=0)
    for label, found in zip(labels, frechet_splits(pool, labels), strict=True):
        parts = both.features[torch.from_numpy(label)], both.features[torch.from_numpy(~label)]
        assert found == pytest.approx(frechet_distance(*parts, ddof=ddof), rel=1e-7)
        assert pool.split(~label) == found or n != m
    order = np.random.default_rng(0).permutation(n + m)
    one, two = order[:2], order[2 : 2 + max(2, (n + m) // 3)]
    assert pool.between(one, two) == pool.between(two, one)
    if len(set(one) | set(two)) < n + m:
        parts = (both.features[torch.from_numpy(numbers)] for numbers in (one, two))
        assert pool.between(one, two) == pytest.approx(frechet_distance(*parts, ddof=ddof), rel=1e-7)


def test_a_pool_whose_covariance_is_singular_is_no_exception():
    draw = torch.Generator().manual_seed(0)
    flat = sample(200, 3, draw) @ torch.randn(3, 20, dtype=torch.float64, generator=draw)  # 3 of 20 dimensions
    both = pooled(flat[:120], 1.3 * flat[120:])
    parts = both.features[torch.from_numpy(both.first)], both.features[torch.from_numpy(~both.first)]
    assert Pool(both.features, ddof=1).split(both.first) == pytest.approx(frechet_distance(*parts), rel=1e-6)


def test_a_pass_over_the_kernel_gives_the_distances_of_all_splits():
    draw = torch.Generator().manual_seed(0)
    both = pooled(sample(1040, 4, draw), sample(30, 4, draw) + 0.3)
    labels = both.labelled(3, seed=1)
    for label, found in zip(labels, kernel_splits(both.features, labels, [KVD])[0], strict=True):
        label = torch.from_numpy(label)
        assert found == pytest.approx(kernel_distance(both.features[label], both.features[~label]), rel=1e-9)
    alike = torch.full((9, 3), 0.37)
    assert kernel_distance(alike, alike) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "d", "power"), [(16, 16, 60, 0.5), (12, 40, 60, 0.5), (48, 48, 60, 0.0), (30, 20, 4, 0.5)])
def test_the_floor_is_what_equal_distributions_score_and_p_is_uniform(n, m, d, power):
    """Where the closed form over a sample's eigenvalues is a third too low, too. The seed is one for all: p is uniform over data."""
    draw, found = torch.Generator().manual_seed(9), []
    for _ in range(300):
        both = pooled(sample(n, d, draw, power), sample(m, d, draw, power))
        values = frechet_splits(Pool(both.features, ddof=1), both.labelled(19, seed=0))
        found.append((values[0], *vars(no_difference(values)).values()))
    distance, floor, p = np.array(found).T
    assert floor.mean() / distance.mean() == pytest.approx(1, abs=0.05)
    assert uneven(p, 20) < 0.1 and 0.02 <= np.mean(p < 0.051) <= 0.09


@pytest.mark.slow
def test_p_is_uniform_over_data_with_one_seed_where_the_order_of_values_says_all():
    """Features of one dimension: labels that were fixed for sorted clips would put the same ranks on one side each time."""
    draw, p = torch.Generator().manual_seed(1), []
    for _ in range(300):
        both = pooled(sample(8, 1, draw), sample(5, 1, draw))
        p.append(no_difference(frechet_splits(Pool(both.features, ddof=1), both.labelled(19, seed=0))).p)
    assert uneven(p, 20) < 0.1


def test_a_difference_has_the_smallest_p_and_stands_above_its_floor():
    draw = torch.Generator().manual_seed(2)
    found = figures(sample(40, 60, draw), sample(30, 60, draw) + 0.5)
    assert found["frechet/x/p"] == found["kvd/x/p"] == found["jedi_formula/x/p"] == 1 / 40
    assert found["frechet/x/over_floor"] == found["frechet/x"] / found["frechet/x/floor"] > 1.5
    assert found["frechet/x/debiased"] == found["frechet/x"] - found["frechet/x/floor"] > 0
    bare = figures(sample(40, 60, draw), sample(30, 60, draw), permutations=0)
    told = {name for name in bare if name.startswith(("frechet", "kvd", "jedi"))}
    assert told == {"frechet/x", "frechet/x/split", "kvd/x", "jedi_formula/x"}
    with pytest.raises(ValueError, match="permutations=5: a p value below 0.05 takes at least 19"):
        figures(sample(9, 3, draw), sample(9, 3, draw), permutations=5)


def test_equal_sets_and_equal_clips_have_p_1():
    draw = torch.Generator().manual_seed(3)
    one = sample(12, 20, draw)
    for found in (figures(one, one), figures(one, one.flip(0)), figures(torch.ones(9, 4), torch.ones(9, 4))):
        assert found["frechet/x/p"] == 1 and found["frechet/x"] <= 1e-9 and found["kvd/x/p"] > 0.5
    assert "frechet/x/over_floor" not in found  # a floor of 0


def test_splits_are_of_the_seed_and_not_of_the_clips_order():
    draw = torch.Generator().manual_seed(4)
    one, two = sample(20, 9, draw), sample(15, 9, draw)
    before = torch.get_rng_state()
    first = figures(one, two)
    assert torch.equal(before, torch.get_rng_state())
    assert figures(one.flip(0), two.roll(4, 0)) == first
    other = figures(one, two, seed=1)
    assert other["frechet/x"] == first["frechet/x"] and other["frechet/x/floor"] != first["frechet/x/floor"]
    assert other["frechet/x/floor"] == pytest.approx(first["frechet/x/floor"], rel=0.2)
    labels = pooled(one, two).labelled(7, seed=0)
    assert labels.shape == (8, 35) and (labels.sum(axis=1) == 20).all() and len(np.unique(labels, axis=0)) == 8


def test_rows_are_ordered_by_value_and_ties_by_the_next():
    rows = np.array([[2.0, 1.0], [1.0, 5.0], [1.0, 3.0], [0.0, 9.0]])
    assert in_order(rows).tolist() == [3, 2, 1, 0] and in_order(rows[[0, 2, 3]]).tolist() == [2, 1, 0]


def test_the_line_to_infinity_is_told_only_where_the_law_of_its_bias_holds():
    draw = torch.Generator().manual_seed(6)
    few = figures(sample(40, 60, draw, 0.0), sample(40, 60, draw, 0.0))
    many = figures(sample(300, 5, draw, 0.0), sample(300, 5, draw, 0.0) + 0.3)
    assert few["frechet/x/infinite_error"] > 0.3 * few["frechet/x"] and "frechet/x/infinite" not in few
    assert many["frechet/x/infinite_error"] < 0.1 * many["frechet/x"] and many["frechet/x/infinite"] == pytest.approx(0.45, rel=0.3)
    for n, d, holds in ((30, 90, False), (500, 4, True)):
        both = pooled(sample(n, d, draw, 0.0), sample(n, d, draw, 0.0))
        pool = Pool(both.features, ddof=1)
        floors = frechet_splits(pool, both.labelled(39, seed=0))[1:]
        error, deviation = law_error(pool, n, n, floors, seed=0)
        assert (abs(error) < 3 * deviation) is holds and deviation < 0.2 * floors.mean()


def test_what_sets_cannot_tell_is_said():
    draw = torch.Generator().manual_seed(7)
    real, fake = sample(16, 5, draw).float(), sample(12, 5, draw).float()
    assert cautions(real, fake) == []
    (few,) = cautions(real[:3], fake[:4])
    assert few.startswith("beware: 3 real and 4 scored clips: there are 35 ways to split them, so p is never below 0.029")
    (one,) = cautions(real, fake[:1].repeat(12, 1))
    assert "what is scored is one clip among 12" in one
    (twice,) = cautions(torch.cat([real, real]), fake)
    assert "the real clips are 16 different clips among 32" in twice
    (same,) = cautions(real, torch.cat([real[:9], fake[:2]]))
    assert "9 of the 11 different clips that are scored are real ones" in same
