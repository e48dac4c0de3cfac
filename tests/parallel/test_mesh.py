"""The mesh of ranks that hold the weights, cut out of the mesh of all ranks."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest
import torch
from torch.distributed.tensor import Shard

from sora.cost.tracing import pretended
from sora.parallel.mesh import MeshStrategy, Sizes, Spreaders
from sora.training import trainers


def refuse(*_, **__):
    raise AssertionError("no task is spread here")


UNASKED = Spreaders(context=refuse, tensor=refuse, encoding=refuse, cut=refuse)


@pytest.mark.parametrize(
    ("sizes", "sharded", "grid"),
    [
        (Sizes(1, 2, 3, 2), True, [0, 2, 4, 6, 8, 10]),  # shard x context in one row, every second rank: tensor runs fastest
        (Sizes(2, 3, 2, 1), True, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        (Sizes(2, 1, 3, 2), True, [[0, 2, 4], [6, 8, 10]]),
        (Sizes(2, 1, 3, 2), False, [[0], [2], [4], [6], [8], [10]]),  # whole copies: six of them, each by itself
        (Sizes(3, 2, 1, 2), True, [[0, 2], [4, 6], [8, 10]]),
        (Sizes(1, 6, 1, 2), True, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_copies_are_rows_and_shards_columns_whatever_the_other_axes_are(sizes, sharded, grid):
    with pretended(12), warnings.catch_warnings(action="error"):  # torch warns of ways into a mesh that it takes away
        strategy = MeshStrategy(
            sizes=sizes, sharded=sharded, spreaders=UNASKED, bf16=False, deterministic=False, timeout=timedelta(minutes=1)
        )
        strategy.lay("cpu")
        found = strategy._sharding_mesh()
        assert torch.equal(found.mesh, torch.tensor(grid))
        assert found._get_root_mesh() == strategy.device_mesh  # what FSDP asks for where another axis cuts weights, too


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed", "fp8"])
def test_a_precision_in_which_no_step_can_be_made_is_refused_before_one(precision):
    """Lightning's bf16-true wants to rewrite batches, and packs are frozen: it failed at the first step of every run."""
    with pytest.raises(ValueError, match=f"{precision} is not trained here; choose 32-true, bf16-mixed"):
        trainers.single_trainer(accelerator="cpu", precision=precision, threads=0, deterministic=False, callbacks=[])


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [
        (Sizes(1, 2, 3, 2), [("context", 3), ("tensor", 2), ("encoding", 6), ("cut", 6)]),
        (Sizes(2, 3, 1, 2), [("tensor", 2), ("encoding", 2), ("cut", 3)]),
        (Sizes(2, 2, 3, 1), [("context", 3), ("encoding", 3), ("cut", 6)]),
        (Sizes(2, 6, 1, 1), [("cut", 6)]),
    ],
)
def test_a_task_is_spread_by_what_the_mesh_was_given_over_the_ranks_of_each_axis_and_before_it_is_cut(sizes, asked):
    found = []

    def cut(parameter, *, shards):
        found.append(("cut", shards))
        return Shard(0)

    spreaders = Spreaders(
        context=lambda task, mesh: found.append(("context", mesh.size())),
        tensor=lambda task, mesh: found.append(("tensor", mesh.size())),
        encoding=lambda task, group: found.append(("encoding", group.size())),
        cut=cut,
    )
    with pretended(sizes.ranks):
        strategy = MeshStrategy(
            sizes=sizes, sharded=True, spreaders=spreaders, bf16=False, deterministic=False, timeout=timedelta(minutes=1)
        )
        strategy.lay("cpu")
        strategy.spread(torch.nn.Linear(4, 12))
    assert list(dict.fromkeys(found)) == asked
