"""Precision, recall, density and coverage against their definitions written out, and where they must be 0 or 1."""

import pytest
import torch

from sora.metrics.distribution.manifold import overlap

DRAW = torch.Generator().manual_seed(0)


def by_definition(real, fake, k):
    def reach(x):
        return [sorted(float((a - b).norm()) for b in x)[k] for a in x]  # the first is the sample itself

    def apart(a, b):
        return float((a - b).norm())

    of_real, of_fake = reach(real), reach(fake)
    within = [[apart(y, x) <= r for x, r in zip(real, of_real, strict=True)] for y in fake]
    return (
        sum(any(row) for row in within) / len(fake),
        sum(any(apart(x, y) <= r for y, r in zip(fake, of_fake, strict=True)) for x in real) / len(real),
        sum(map(sum, within)) / (k * len(fake)),
        sum(any(row[i] for row in within) for i in range(len(real))) / len(real),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_the_definitions(k):
    real = torch.randn(30, 3, generator=DRAW, dtype=torch.float64)
    fake = 0.8 * torch.randn(23, 3, generator=DRAW, dtype=torch.float64) + 0.6
    found = overlap(real, fake, neighbours=k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(by_definition(real, fake, k))
    assert 0 < found.precision < 1 or 0 < found.coverage < 1


def test_equal_sets_and_sets_far_apart():
    features = torch.randn(40, 8, generator=DRAW)
    same, apart = overlap(features, features), overlap(features, features + 100)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density >= 1
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_a_mode_that_is_missing_costs_recall_and_coverage_but_no_precision():
    real = torch.cat([torch.randn(60, 4, generator=DRAW), torch.randn(60, 4, generator=DRAW) + 20])
    found = overlap(real, torch.randn(90, 4, generator=DRAW))
    assert found.precision > 0.9 and found.recall < 0.6 and found.coverage < 0.6


def test_an_offset_that_dwarfs_the_spread_changes_nothing():
    """Distances by the matrix product would round these neighbours together."""
    real, fake = torch.randn(40, 3, generator=DRAW, dtype=torch.float64), torch.randn(40, 3, generator=DRAW, dtype=torch.float64)
    assert overlap(real + 1e7, fake + 1e7) == overlap(real, fake)


@pytest.mark.slow
def test_the_published_values_of_equal_gaussians():
    """prdc's own example: 10,000 samples of 1,000 dimensions; with fewer of both, density and coverage of equal sets stay near 1."""
    found = overlap(torch.randn(1500, 64, generator=DRAW), torch.randn(1500, 64, generator=DRAW))
    assert found.density == pytest.approx(1.0, abs=0.1) and found.coverage == pytest.approx(0.97, abs=0.03)


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="have no 5 neighbours each"):
        overlap(torch.randn(5, 3), torch.randn(30, 3))
