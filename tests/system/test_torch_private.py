"""What a new torch broke, in a sentence: each private name of `sora.system.torch_private` is tried as sora uses it."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional
from torch.utils.data import DataLoader

from sora.system import torch_private as private


@pytest.fixture
def two_ranks():
    """A mesh of two ranks, of which this process is the first."""
    private.let_collectives_be_fake()
    dist.init_process_group("fake", store=private.FakeStore(), rank=0, world_size=2)
    yield DeviceMesh("cpu", [0, 1])
    dist.destroy_process_group()
    private.clear_sharding_prop_cache()


def steps(*given):
    """Two tensors, after an operator on lists of them."""
    found = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    operator, *rest = given
    operator(found, *rest)
    return [value.tolist() for value in found]


def _lists(_):
    ones = [torch.ones(2), torch.ones(1)]
    assert steps(private.foreach_add_, ones) == [[2, 3], [4]]
    assert steps(private.foreach_mul_, 2.0) == [[2, 4], [6]]
    assert steps(private.foreach_mul_, torch.tensor(2.0)) == [[2, 4], [6]]
    assert steps(private.foreach_copy_, ones) == [[1, 1], [1]]
    assert steps(private.foreach_lerp_, ones, 0.5) == [[1, 1.5], [2]]
    assert [value.item() for value in private.foreach_norm([torch.tensor([3.0, 4.0])])] == [5]


def _softmax(_):
    scores, slope = torch.randn(2, 3, 5).unbind()
    weights = scores.requires_grad_().softmax(-1)
    weights.backward(slope)
    assert torch.allclose(private.softmax_backward(slope, weights.detach(), -1, torch.float32), scores.grad)


def _attention(_):
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 6, 8).unbind())
    mask, slope = torch.zeros(1, 1, 6, 6), torch.randn(1, 2, 6, 8)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected.backward(slope)
    inputs = [x.detach() for x in (q, k, v)]
    out, logsumexp = private.cpu_flash_attention(*inputs, attn_mask=mask)
    assert torch.allclose(out, expected, atol=1e-5)
    grads = private.cpu_flash_attention_backward(slope, *inputs, out, logsumexp, 0.0, False, attn_mask=mask)
    assert all(torch.allclose(found, x.grad, atol=1e-5) for found, x in zip(grads, (q, k, v), strict=True))


def _varlen(_):
    import torch.nn.attention.varlen

    takes = torch.ops.torch_attn._varlen_attn_backward.default._schema.arguments
    expected = "grad_out query key value out lse cu_seq_q cu_seq_k max_q max_k is_causal rng_state"
    assert [argument.name for argument in takes][:12] == expected.split()


def _fakes(_):
    with private.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert private.active_fake_mode() is fake
        made = torch.ones(3)
        assert isinstance(made, private.FakeTensor)
        with private.unset_fake_temporarily():
            assert private.active_fake_mode() is None and torch.ones(3).sum().item() == 3


class Seen(private.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operator = func
        return func(*args, **(kwargs or {}))


def _dispatch(_):
    with Seen() as seen:
        torch.ones(()).item()
    assert seen.operator is private.item and isinstance(seen.operator, private.OpOverload)
    assert private.is_traceable_wrapper_subclass_type(DTensor) and not private.is_traceable_wrapper_subclass_type(torch.Tensor)
    assert private.tree_leaves([1, (2, {"x": 3})]) == [1, 2, 3]


def _sharding(mesh):
    stacked = private.StridedShard(0, split_factor=2)
    assert not isinstance(stacked, Shard) and (stacked.dim, stacked.split_factor) == (0, 2)
    assert private.compute_local_shape_and_global_offset((6, 4), mesh, [Shard(0)]) == ((3, 4), (0, 0))
    assert callable(private.ShardingPropagator._propagate_tensor_meta_non_cached)


def _collectives(mesh):
    group = mesh.get_group()
    x = torch.ones(4, 2)
    ops = private.functional_operators
    assert ops.wait_tensor(ops.all_reduce(x, "sum", group.group_name)).shape == (4, 2)
    assert ops.wait_tensor(ops.all_gather_into_tensor(x, 2, group.group_name)).shape == (8, 2)
    assert ops.wait_tensor(ops.reduce_scatter_tensor(x, "sum", 2, group.group_name)).shape == (2, 2)
    assert private.resolve_process_group(group.group_name) is group
    sent = x.requires_grad_()
    came = private.functional_collectives.all_to_all_single_autograd(sent, [2, 2], [2, 2], group)
    assert came.requires_grad and (came * 2).shape == (4, 2)
    with private.FakeTensorMode() as fake:
        given = fake.from_tensor(torch.ones(4, 2))
        assert ops.wait_tensor(ops.all_gather_into_tensor(given, 2, group.group_name)).shape == (8, 2)


def _loader(_):
    found = DataLoader([1, 2], num_workers=1)._get_iterator()
    try:
        assert isinstance(found, private.DataLoaderProcesses)
        assert all(hasattr(found, name) for name in ("_workers", "_worker_result_queue", "_data_queue", "_dataset"))
        assert next(found) == 1
    finally:
        found._shutdown_workers()


def _compiled(_):
    x = torch.ones(3)
    private.allow_lengths(x)
    assert 0 in x._dynamo_weak_dynamic_indices
    assert isinstance(private.multiplies_bfloat16(), bool)


SAID = {
    _lists: ("foreach_", "averages of weights and gradients' norms and sums go tensor by tensor: see what torch.optim calls now"),
    _softmax: ("softmax_backward", "chunked attention has no backward pass: write the derivative of softmax out"),
    _attention: ("cpu_flash_", "attention on CPUs has no kernel or no backward pass: sora.dit.chunked_attention is what is left"),
    _varlen: ("varlen_", "flash attention on GPUs has no backward pass: see torch/nn/attention/varlen.py for its operator"),
    _fakes: ("FakeTensor FakeTensorMode active_fake unset_fake", "`sora plan` cannot trace a step without memory"),
    _dispatch: ("TorchDispatchMode OpOverload item is_traceable tree_leaves", "operators of a step cannot be counted, nor told apart"),
    _sharding: ("StridedShard compute_local ShardingPropagator", "weights in shards are cut, stored or priced otherwise than torch does"),
    _collectives: (
        "functional_ resolve_process FakeStore clear_sharding let_collectives",
        "ranks cannot exchange tokens, rows and sums within a step, or not in a traced one",
    ),
    _loader: ("DataLoaderProcesses", "batches of loader workers do not come by a thread, or workers that hang outlive their loader"),
    _compiled: ("allow_lengths multiplies_", "packs of any length compile one graph each, or attention on CPUs is chosen wrongly"),
}


@pytest.mark.parametrize("check", SAID, ids=lambda check: check.__name__.strip("_"))
def test_torch_still_does_what_its_private_names_did(check, two_ranks):
    names, sentence = SAID[check]
    try:
        check(two_ranks)
    except Exception as error:
        pytest.fail(f"torch {torch.__version__}, of {names}: {sentence} ({type(error).__name__}: {error})")


def test_every_private_name_is_tried():
    public = {name for name in {*vars(private), *private._WHEN_ASKED} if not name.startswith("_")}
    names = public - {"annotations", "import_module", "TYPE_CHECKING", "Any", "torch", "Tensor"}
    starts = tuple(start for names, _ in SAID.values() for start in names.split())
    assert not [name for name in names if not name.startswith(starts)]


def test_what_takes_long_is_imported_when_it_is_asked_for():
    script = f"import sys, {private.__name__}; sys.exit('torch.distributed.tensor' in sys.modules or 'torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Strided'"):
        importlib.import_module(private.__name__).Strided  # noqa: B018
