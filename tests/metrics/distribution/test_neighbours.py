"""Copies are told from new clips, and new ones of another kind from both."""

import pytest
import torch

from sora.metrics.distribution.neighbours import nearest, neighbours


def drawn(count, seed, *, shift=0.0, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_nearest_is_found_by_any_distance_and_of_alike_ones_the_first():
    among = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    places, far = nearest(torch.tensor([[3.0, 3.0], [0.1, 0.0], [3.0, 4.0]]), among)
    assert places.tolist() == [1, 0, 1] and far.tolist() == pytest.approx([1.0, 0.1, 0.0], abs=1e-7)
    big = 1e6 + drawn(1100, 0)
    places, far = nearest(big, big)
    assert places.tolist() == list(range(1100)) and far.max() == 0  # rows in slices; no rounding of a matrix product


def test_new_clips_of_the_same_kind_are_as_near_as_other_real_ones():
    found = [neighbours(drawn(100, seed), drawn(300, 1000 + seed), drawn(100, 2000 + seed)) for seed in range(20)]
    assert sum(abs(each.z) < 1.96 for each in found) >= 16
    assert sum(each.remembered for each in found) / 20 == pytest.approx(0.06, abs=0.03)


def test_copies_are_seen_and_their_originals_named():
    training = drawn(300, 0)
    fake = drawn(80, 1)
    fake[:40] = training[100:140] + 0.01 * drawn(40, 2)
    found = neighbours(fake, training, drawn(100, 3))
    assert found.places[:40].tolist() == list(range(100, 140))
    assert found.z < -4 and 0.5 <= found.remembered < 0.65 and found.distances[:40].max() < found.usual / 10


def test_clips_of_another_kind_are_far_from_all():
    found = neighbours(drawn(50, 0, shift=5.0), drawn(300, 1), drawn(50, 2))
    assert found.z > 7 and found.remembered == 0


def test_the_size_of_a_set_moves_the_z_score_and_nothing_else_does():
    fake, training, other = drawn(30, 0), drawn(60, 1), drawn(40, 2)
    plain, scaled = neighbours(fake, training, other), neighbours(3 * fake + 7, 3 * training + 7, 3 * other + 7)
    assert scaled.z == pytest.approx(plain.z) and scaled.remembered == plain.remembered
    assert scaled.usual == pytest.approx(3 * plain.usual, rel=1e-5)
    turned = torch.linalg.qr(drawn(8, 3))[0]
    assert neighbours(fake @ turned, training @ turned, other @ turned).z == pytest.approx(plain.z, abs=0.05)
    with pytest.raises(ValueError):
        neighbours(fake[:1], training, other)
