"""A step is traced without numbers, devices or other ranks; what mixes precisions on a GPU does so there."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional as F
from torch.optim import AdamW

from sora.cost.tally import CostCounter
from sora.cost.tracing import gpu_casts, held, pretended
from sora.dit.dit import HeadNorm
from tests.training.groups import in_ranks


def test_ranks_are_pretended_and_then_gone():
    with pretended(1024):
        assert dist.get_world_size() == 1024
        with pytest.raises(ValueError, match="trains with others already"), pretended(2):
            pass
    assert not dist.is_initialized()


def test_norms_are_wide_under_a_gpus_autocast_and_nowhere_else():
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    layer, rms = F.layer_norm, torch.rms_norm
    with gpu_casts():
        assert F.layer_norm(x, (4,)).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert F.layer_norm(x, (4,)).dtype == F.rms_norm(x, (4,)).dtype == torch.rsqrt(x).dtype == torch.float32
            assert nn.Linear(4, 4)(F.layer_norm(x, (4,))).dtype == torch.bfloat16
    assert F.layer_norm is layer and torch.rms_norm is rms


def test_queries_go_to_attention_in_the_precision_of_the_values():
    x = torch.ones(3, 2, 4, dtype=torch.bfloat16)
    with gpu_casts(), torch.autocast("cpu", torch.bfloat16):
        assert HeadNorm(4, 1e-6)(x).dtype == torch.bfloat16


def test_what_is_held_is_counted_in_bytes():
    assert held([torch.ones(3, 5), torch.ones(2, dtype=torch.bfloat16)]) == 64


@pytest.mark.slow
def test_the_update_of_shards_is_counted_in_shards():
    """DTensor asks for the shapes of whole tensors by making whole fake ones, which lie nowhere."""
    with pretended(64):
        mesh = init_device_mesh("cpu", (64,))
        with FakeTensorMode(), CostCounter() as tally:
            net = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))
            fully_shard(net, mesh=mesh)
            optimizer = AdamW(net.parameters(), fused=True)
            for value in net.parameters():
                value.grad = torch.zeros_like(value)
            tally.restart()
            before = tally.alive
            optimizer.step()
            assert tally.alive - before < 2 * 2 * held(net.parameters())  # two moments, and a count for each
            assert tally.largest - before < 256 * 256 * 4


def test_what_was_pretended_does_not_tell_later_ranks_where_they_are(tmp_path):
    """Torch keeps results by the look of their mesh: ranks forked later took the first one's place, and left tensors unsaved."""

    def placed_again() -> tuple[int, ...]:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("shard", "tensor"))
        value = DTensor.from_local(torch.zeros(6), mesh, [Shard(0), Replicate()], run_check=False)
        return tuple(value.detach().device_mesh.get_coordinate() or ())

    with pretended(2):
        assert placed_again() == (0, 0)

    def work(rank: int) -> None:
        assert placed_again() == (0, rank), placed_again()

    in_ranks(2, tmp_path, work)
