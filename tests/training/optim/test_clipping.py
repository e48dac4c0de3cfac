"""The norm of all gradients is that of the whole tensors, whatever mixture of meshes they lie in shards on."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from sora.system.distributed import whole
from sora.training.optim.clipping import each_norm, scale, total_norm
from tests.training.groups import in_ranks


def gradients() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in ((5, 3), (4, 4), (7,), (3, 3, 2), (), (1, 6))]


def norm_of(values: list[torch.Tensor]) -> torch.Tensor:
    return total_norm(values, each_norm(values))


def test_one_norm_over_shards_of_several_meshes_copies_and_plain_tensors(tmp_path):
    wanted = torch.nn.utils.get_total_norm(gradients())

    def work(rank: int) -> None:
        line = init_device_mesh("cpu", (2,))
        both = [init_device_mesh("cpu", shape) for shape in ((2, 1), (1, 2))]
        layouts = [(line, [Shard(0)]), (line, [Shard(1)]), (line, [Replicate()]), (both[0], [Shard(1), Shard(0)])]
        layouts += [None, (both[1], [Replicate(), Shard(0)])]
        mixed = [value if layout is None else distribute_tensor(value, *layout) for value, layout in zip(gradients(), layouts, strict=True)]
        norm = norm_of(mixed)
        torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
        scale(mixed, 0.5 / float(norm))
        for value, plain in zip(mixed, gradients(), strict=True):
            torch.testing.assert_close(whole(value), plain * 0.5 / wanted)
        assert norm_of(mixed) == pytest.approx(0.5, rel=1e-6)
        everyone = [torch.zeros(()) for _ in range(2)]
        dist.all_gather(everyone, norm_of(mixed))
        assert everyone[0] == everyone[1]  # to the last bit: all ranks take or leave a step alike
        if rank == 1:
            mixed[0].to_local().fill_(float("nan"))
        assert not torch.isfinite(norm_of(mixed))
        with pytest.raises(AssertionError, match="a sum not yet taken"):
            norm_of([DTensor.from_local(torch.ones(2), line, [Partial()])])

    in_ranks(2, tmp_path, work)
    torch.testing.assert_close(norm_of(gradients()), wanted)
