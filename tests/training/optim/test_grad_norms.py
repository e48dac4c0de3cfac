"""Gradient norms of a network's parts: what a single process would find, on any mesh."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from sora.training.optim import clipping
from sora.training.optim import grad_norms as gradients
from tests.training.groups import in_ranks
from tests.training.stand_ins import Network

SHAPES = {"net.enter.weight": (7, 3), "net.blocks.0.mlp.up": (5, 4), "net.blocks.0.norm": (3,), "net.blocks.10.mlp.up": (2, 6), "scale": ()}


def filled() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    found = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for value in found.values():
        value.grad = torch.randn(value.shape, generator=draw)
    return found


def wanted() -> dict[str, float]:
    found = filled()
    parts = {gradients.part_of(name): 0.0 for name in found}
    for name, value in found.items():
        parts[gradients.part_of(name)] += value.grad.double().square().sum().item()
    return {part: math.sqrt(square) for part, square in parts.items()}


def norms_of(parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    return gradients.norms(parameters, clipping.each_norm([value.grad for value in parameters.values() if value.grad is not None]))


def test_parts_are_blocks_and_what_stands_beside_them():
    assert gradients.parts_of(SHAPES) == ["net.enter", "net.blocks.0", "net.blocks.10", "scale"]


def test_squares_add_up_to_the_norm_that_is_clipped():
    network = Network()
    network(torch.randn(5, 6)).square().sum().backward()
    found = norms_of(dict(network.named_parameters()))
    total = torch.nn.utils.get_total_norm([value.grad for value in network.parameters()])
    assert list(found) == ["enter.weight", "enter.bias", "blocks.0", "blocks.1", "leave.weight", "leave.bias"]
    assert math.hypot(*found.values()) == pytest.approx(total.item(), rel=1e-6)
    network.blocks[1].weight.grad = None
    network.blocks[1].bias.grad = None
    assert norms_of(dict(network.named_parameters())) == {**found, "blocks.1": 0.0}


def test_a_gradient_that_is_not_finite_shows_in_its_own_part_alone():
    found = filled()
    found["net.blocks.0.norm"].grad[1] = math.nan
    told = norms_of(found)
    assert math.isnan(told.pop("net.blocks.0"))
    assert told == pytest.approx({part: norm for part, norm in wanted().items() if part != "net.blocks.0"})


def test_every_mesh_finds_what_one_process_finds(tmp_path):
    """Four ranks; with 3 and 2 rows some hold nothing of a tensor."""

    def work(rank: int) -> None:
        flat, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        for mesh, places in (
            (flat, [Shard(0)]),
            (flat, [Replicate()]),
            (square, [Replicate(), Shard(0)]),
            (square, [Shard(0), Replicate()]),
            (square, [Shard(0), Shard(1)]),
            (square["b"], [Shard(0)]),
            (square, None),
        ):
            found = filled()
            for name, value in found.items():
                fits = value.dim() > max((place.dim for place in places or () if isinstance(place, Shard)), default=-1)
                if places is not None and fits and name != "net.blocks.10.mlp.up":  # one tensor that every rank holds, among shards
                    gradient = distribute_tensor(value.grad, mesh, places)
                    found[name] = nn.Parameter(distribute_tensor(value.data, mesh, places))
                    found[name].grad = gradient
            told = norms_of(found)
            assert told == pytest.approx(wanted(), rel=1e-6), (mesh, places)
        clipping.distinct = lambda gradient: 4  # the mutant: everybody's copy is counted whole
        assert norms_of(filled()) != pytest.approx(wanted(), rel=1e-2)

    in_ranks(4, tmp_path, work)
