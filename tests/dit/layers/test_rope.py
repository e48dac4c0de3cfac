"""Rotary positions."""

import pytest
import torch

from sora.dit.layers.rope import AxialRope, Learned, Waves, rotate


def scores(rope, q, k, positions):
    rotation = rope(positions)
    return torch.einsum("nke,mke->knm", rotate(q, rotation), rotate(k, rotation))


def test_scores_depend_on_differences_of_positions_only():
    rope = AxialRope(axes=[4, 6, 6], time_scale=3.0, theta=100.0)
    q, k, positions = torch.randn(9, 2, 16), torch.randn(9, 2, 16), torch.rand(9, 3) * 5
    moved = positions + torch.tensor([2.5, -3.0, 11.0])
    torch.testing.assert_close(scores(rope, q, k, positions), scores(rope, q, k, moved), atol=2e-5, rtol=0)
    for axis in range(3):
        stretched = positions.clone()
        stretched[:, axis] *= 1.5
        assert (scores(rope, q, k, positions) - scores(rope, q, k, stretched)).abs().max() > 0.1, f"axis {axis} is not seen"


def test_each_axis_turns_its_own_channels_at_its_own_rates():
    rope = AxialRope(axes=[2, 4, 2], time_scale=7.0, theta=100.0)
    x = torch.zeros(1, 1, 8)
    x[..., ::2] = 1
    turned = rotate(x, rope(torch.tensor([[0.5, 2.0, 3.0]])))[0, 0]
    angles = torch.tensor([0.5 * 7, 2.0, 2.0 / 10, 3.0])
    torch.testing.assert_close(turned, torch.stack((angles.cos(), angles.sin()), -1).flatten())


def test_angles_stay_exact_under_autocast_and_far_away():
    rope = AxialRope(axes=[4, 6, 6], time_scale=6.0, theta=10_000.0)
    positions = torch.tensor([[100.0, 999.0, 1000.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotation = rope(positions)
    torch.testing.assert_close(rotation, rope(positions), atol=0, rtol=0)
    exact = torch.polar(torch.ones(1, 8).double(), positions.double()[:, rope.axis] * rope.rates.double())
    torch.testing.assert_close(rotation[:, 0].to(torch.complex128), exact, atol=2e-4, rtol=0)


def test_a_module_cast_to_bf16_keeps_its_angles():
    """Rates of eight bits would be wrong by a whole turn at position 1,000."""
    rope, waves = AxialRope(axes=[4, 6, 6], time_scale=6.0, theta=10_000.0), Waves(48, waves=8, time_scale=6.0)
    positions = torch.tensor([[100.3, 999.0, 1000.0]])
    before, told = rope(positions), waves(positions)
    assert torch.equal(rope.to(torch.bfloat16)(positions), before)
    torch.testing.assert_close(waves.to(torch.bfloat16)(positions).float(), told, atol=0.02, rtol=0.02)


def test_odd_axes_are_refused():
    with pytest.raises(ValueError, match=r"rope\.axes is \[3, 6, 7\]"):
        AxialRope(axes=[3, 6, 7], time_scale=1.0, theta=100.0)


def test_waves_are_cosines_and_sines_of_each_axis():
    """Wave lengths from 2 to 512 positions; seconds count `time_scale` times."""
    module = Waves(6 * 9, waves=9, time_scale=5.0)
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(54))
        module.project.bias.zero_()
    seconds, row, column = 0.7, 3.0, 11.0
    angles = [2 * torch.pi * place / 2.0**power for place in (seconds * 5, row, column) for power in range(1, 10)]
    angles = torch.tensor(angles, dtype=torch.float64)
    found = module(torch.tensor([[seconds, row, column]]))[0].double()
    torch.testing.assert_close(found, torch.cat((angles.cos(), angles.sin())), atol=2e-5, rtol=0)


def test_waves_part_every_place_of_a_large_clip():
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    positions = torch.stack((torch.zeros(128 * 128), rows.flatten(), columns.flatten()), -1)
    module = Waves(48, waves=8, time_scale=1.0)
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(48))
    told = module(positions[:128])  # along one axis; the other is told the same way
    assert torch.pdist(told).min() > 0.05
    assert torch.pdist(module(positions[::128])).min() > 0.05


def test_learned_places_are_rows_of_their_tables_and_mix_in_between():
    module = Learned(5, places=4, time_scale=2.0)
    time, rows, columns = module.tables
    found = module(torch.tensor([[1.0, 2.0, 0.0], [0.25, 0.0, 2.25], [9.0, 7.0, 3.0], [-1.0, 0.5, 3.5]]))
    wanted = [
        time[2] + rows[2] + columns[0],
        (time[0] + time[1]) / 2 + rows[0] + 0.75 * columns[2] + 0.25 * columns[3],
        time[3] + rows[3] + columns[3],  # beyond the last place
        time[0] + (rows[0] + rows[1]) / 2 + columns[3],
    ]
    torch.testing.assert_close(found, torch.stack(wanted))
    found.sum().backward()
    assert all(table.grad.abs().sum() > 0 for table in module.tables)
    with pytest.raises(ValueError, match=r"position\.count is 0"):
        Learned(5, places=0, time_scale=1.0)
