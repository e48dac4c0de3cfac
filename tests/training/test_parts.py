"""Averages, optimisers, schedules, random states: each against what its source says."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sora.system import global_rng as rng
from sora.training.optim import ema, optimizers, schedules


def test_the_average_is_the_weighted_sum_that_its_rates_make():
    weights = {"w": nn.Parameter(torch.tensor([1.0, -2.0]))}
    average = ema.Average(partial(ema.constant_decay, decay=0.9, warmup=10))
    average.follow(weights)
    expected = weights["w"].detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            weights["w"].add_(0.1)
        average.update(weights, step)
        kept = min(0.9, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weights["w"].detach()
    torch.testing.assert_close(average.shadow["w"], expected)


def test_the_power_profile_weighs_step_i_by_i_to_the_gamma():
    """Karras et al. 2024, eq. 123: the average of w_i with weights proportional to i^gamma, up to the discrete steps."""
    gamma, steps = 6.94, 400
    weights = {"w": nn.Parameter(torch.zeros(1))}
    average = ema.Average(partial(ema.power_decay, gamma=gamma))
    average.follow(weights)
    for step in range(1, steps + 1):
        with torch.no_grad():
            weights["w"].fill_(step)
        average.update(weights, step)
    ideal = sum(i * i**gamma for i in range(1, steps + 1)) / sum(i**gamma for i in range(1, steps + 1))
    assert average.shadow["w"].item() == pytest.approx(ideal, rel=2e-3)


def test_applying_the_average_gives_the_weights_back_bit_for_bit():
    model = nn.Linear(3, 3)
    weights = dict(model.named_parameters())
    average = ema.Average(partial(ema.constant_decay, decay=0.5, warmup=1))
    average.follow(weights)
    with torch.no_grad():
        model.weight.add_(torch.randn(3, 3))
    trained = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="in the middle"), average.applied(weights):
        assert torch.equal(model.weight, average.shadow["weight"])
        raise RuntimeError("in the middle")
    assert torch.equal(model.weight, trained)


def test_an_average_of_half_precision_weights_is_kept_in_single():
    weights = {"w": nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}
    average = ema.Average(partial(ema.constant_decay, decay=0.999, warmup=1))
    average.follow(weights)
    with torch.no_grad():
        weights["w"].add_(0.01)
    average.update(weights, 10_000)
    assert average.shadow["w"].dtype == torch.float32
    assert (average.shadow["w"] > 1).all()  # in bf16 the move would be lost


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (64, 16)])
def test_orthogonalised_matrices_keep_their_directions_and_have_singular_values_near_one(shape):
    draw = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=draw)
    turned = optimizers.orthogonalise(matrices, iterations=5)
    for before, after in zip(matrices, turned, strict=True):
        values = torch.linalg.svdvals(after)
        assert values.min() > 0.6 and values.max() < 1.3
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        inner = u.mT @ after @ v.mT  # diagonal if the singular vectors are the same
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-3


def test_muon_takes_the_step_that_torchs_takes_up_to_its_half_precision():
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(16, 8, generator=draw), torch.randn(4, 16, 8, generator=draw)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first = optimizers.Muon([{"params": [ours]}], lr=0.1, momentum=0.9, weight_decay=0.1, iterations=5)
    second = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    moved, wanted = ours.detach() - start, theirs.detach() - start
    assert torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.999
    assert moved.norm().item() == pytest.approx(wanted.norm().item(), rel=0.02)


def test_a_fused_projection_steps_as_its_parts_would():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(8, 8, generator=draw) for _ in range(3)]
    gradients = [10.0**power * torch.randn(8, 8, generator=draw) for power in range(3)]
    fused = {"blocks.0.qkv.weight": nn.Parameter(torch.cat(parts))}
    apart = {f"blocks.0.{name}.weight": nn.Parameter(part.clone()) for name, part in zip("qkw", parts, strict=True)}
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "iterations": 5, "within": "blocks.", "splits": {"qkv": 3, "kv": 2}}
    others = {"other_lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8}
    (one,) = optimizers.muon(fused, **settings, **others)
    (several,) = optimizers.muon(apart, **settings, **others)
    next(iter(fused.values())).grad = torch.cat(gradients)
    for value, gradient in zip(apart.values(), gradients, strict=True):
        value.grad = gradient
    one.step()
    several.step()
    torch.testing.assert_close(next(iter(fused.values())), torch.cat(list(apart.values())))


def test_muon_takes_the_blocks_matrices_and_adamw_all_the_rest():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 4)
            self.blocks = nn.ModuleList([nn.Linear(4, 4)])
            self.blocks[0].table = nn.Parameter(torch.zeros(6, 4))

    parameters = dict(Net().named_parameters())
    others = {"other_lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8}
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "iterations": 5, "splits": {}}
    first, second = optimizers.muon(parameters, within="blocks.", **settings, **others)
    names = {value: name for name, value in parameters.items()}
    assert [names[value] for group in first.param_groups for value in group["params"]] == ["blocks.0.weight"]
    decays = {names[value]: group["weight_decay"] for group in second.param_groups for value in group["params"]}
    assert decays == {"embed.weight": 0.1, "embed.bias": 0.0, "blocks.0.bias": 0.0, "blocks.0.table": 0.0}
    with pytest.raises(ValueError, match="no weight matrix has 'layers'"):
        optimizers.muon(parameters, within="layers", **settings, **others)


def test_schedules_rise_hold_and_end_where_they_say():
    steps = 100
    tail = [schedules.linear_tail_schedule(step, steps=steps, warmup=10, tail=0.4, floor=0.1) for step in range(steps)]
    assert tail[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert set(tail[10:60]) == {1.0}
    assert tail[-1] == pytest.approx(0.1)
    assert np.allclose(np.diff(tail[60:]), np.diff(tail[60:])[0])
    cosine = [schedules.cosine_schedule(step, steps=steps, warmup=10, floor=0.1) for step in range(steps)]
    assert max(cosine) == pytest.approx(1.0) and cosine[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(cosine[10:]))
    assert schedules.constant_schedule(0, steps=steps, warmup=0) == 1.0


def test_random_states_come_back_with_python_and_numpy_in_the_middle_of_a_pair_of_normals():
    rng.seed(3)
    random.gauss(0, 1)  # leaves its twin behind
    np.random.normal()
    kept = rng.capture()

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), *torch.randn(3).tolist()]

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    wanted = draw()
    rng.seed(4)
    rng.restore(kept)
    after = random.getstate()
    assert after == state[0]
    random.setstate(state[0])  # the checker of annotations may have drawn in between
    assert draw() == wanted


def test_ranks_and_seeds_get_streams_of_their_own():
    seen = set()
    for seed in range(4):
        for rank in range(4):
            rng.seed(seed, rank=rank)
            seen |= {("torch", torch.rand(()).item()), ("numpy", np.random.rand()), ("python", random.random())}
    assert len(seen) == 48
