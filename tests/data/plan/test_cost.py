"""The cost of a clip is what was measured, or what a network's width says."""

import numpy as np
import pytest

from sora.data.plan.cost import Cost, fitted_cost


def test_a_layers_operations_give_the_ratio():
    """24 d^2 a token and 4 d for each pair of tokens."""
    cost = Cost(linear=2.0, quadratic=None).of_width(64)
    assert cost.quadratic / cost.linear == pytest.approx(4 * 64 / (24 * 64**2))
    assert Cost(linear=1.0, quadratic=0.5).of_width(None).of(np.array([0, 1, 4])).tolist() == [0, 1.5, 12]
    with pytest.raises(ValueError, match=r"plan\.cost\.quadratic is null"):
        Cost(linear=1.0, quadratic=None).of_width(None)


def test_measured_seconds_give_their_own_coefficients_back():
    lengths = [64, 128, 1024, 4096]
    cost = fitted_cost(lengths, [3e-6 + 2e-10 * length for length in lengths])
    assert (cost.linear, cost.quadratic) == (pytest.approx(3e-6), pytest.approx(2e-10))
    assert fitted_cost([64, 128], [2.0, 1.0]).quadratic == 0
    assert fitted_cost([64, 128], [1.0, 2.5]).linear > 0
    with pytest.raises(ValueError, match="two different lengths"):
        fitted_cost([64, 64], [1.0, 1.0])


def test_values_that_mean_nothing_are_refused():
    for wrong in ({"linear": 0.0, "quadratic": 1.0}, {"linear": 1.0, "quadratic": -1.0}):
        with pytest.raises(ValueError, match="calibrate=true"):
            Cost(**wrong)
