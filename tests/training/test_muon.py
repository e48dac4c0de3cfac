"""Muon on matrices in shards: what one process makes of the whole ones, whatever mesh and cut they have."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from sora.training.optim.optimizers import _turned, _whole_turned, muon
from tests.training.groups import in_ranks

LAYOUTS = (
    ((4,), (Shard(0),)),
    ((2, 2), (Replicate(), Shard(0))),
    ((4,), (Shard(1),)),
    ((2, 2), (Shard(1), Shard(0))),
    ((4,), (Replicate(),)),
)


def matrices(columns: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Three of them (fewer than ranks), each of three stacked, and what they become in one process."""
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(12, columns, generator=draw) for _ in range(3)]
    return made, _whole_turned(torch.stack(made), parts=3, iterations=5)


@pytest.mark.slow
def test_shards_of_any_layout_become_what_whole_matrices_do(tmp_path):
    def work(rank: int) -> None:
        whole, wanted = matrices(7)  # columns and rows that do not divide over the ranks
        for shape, placements in LAYOUTS:
            mesh = init_device_mesh("cpu", shape)
            found = _turned([distribute_tensor(each, mesh, placements) for each in whole], parts=3, iterations=5)
            for one, same in zip(found, wanted, strict=True):
                assert one.placements == placements
                torch.testing.assert_close(one.full_tensor(), same)

    in_ranks(4, tmp_path, work)


def test_rows_that_tensor_ranks_share_in_strides(tmp_path):
    """As queries, keys and values are, with columns in shards beside."""

    def work(rank: int) -> None:
        mesh = init_device_mesh("cpu", (1, 2))
        whole, wanted = matrices(6)

        def mine(each: torch.Tensor) -> torch.Tensor:
            return each.unflatten(0, (3, 2, 2))[:, rank].flatten(0, 1).contiguous()

        layout = {"placements": [Shard(1), _StridedShard(0, split_factor=3)], "run_check": False, "shape": (12, 6), "stride": (6, 1)}
        found = _turned([DTensor.from_local(mine(each), mesh, **layout) for each in whole], parts=3, iterations=5)
        for one, same in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.to_local(), mine(same))

    in_ranks(2, tmp_path, work)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lr": -1.0}, r"optimizer\.lr=-1\.0 must be"),
        ({"other_lr": float("nan")}, r"optimizer\.other_lr=nan must be"),
        ({"weight_decay": float("inf")}, r"optimizer\.weight_decay=inf must be"),
        ({"betas": (0.9, 1.0)}, r"optimizer\.betas=\[0\.9, 1\.0\]"),
    ],
)
def test_numbers_that_nothing_steps_with_are_refused_by_their_keys(wrong, told):
    given = {"lr": 0.1, "other_lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "iterations": 5, "betas": (0.9, 0.95), "eps": 1e-8}
    parameters = {"blocks.0.weight": torch.nn.Parameter(torch.ones(2, 2)), "bias": torch.nn.Parameter(torch.ones(2))}
    assert muon(parameters, within="blocks.", splits={}, **given)
    with pytest.raises(ValueError, match=told):
        muon(parameters, within="blocks.", splits={}, **(given | wrong))
