"""All private names of torch that sora uses, under public ones: what a new torch may change without a word stands here alone.

Last tried with torch 2.13: `tests/system/test_torch_private.py` uses each as sora does, and says in a sentence what another torch broke.
Those of `_WHEN_ASKED` import what takes long, such as torch.distributed.tensor, when somebody imports them from here.
"""

# ruff: noqa: F401  names are imported for others

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

# A step is traced on tensors without memory, to count what it would take: there is no public name of their mode.
from torch._guards import active_fake_mode
from torch._ops import OpOverload  # the class of operators: which of them computes attention is told by their names
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

# Operators are counted by a mode that sees each of them, beneath sharded tensors.
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves  # the tensors among an operator's results

# Batches are received from worker processes by a thread, and workers that hang are killed: no public class can be told to.
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as DataLoaderProcesses

if TYPE_CHECKING:
    from torch.distributed import _functional_collectives as functional_collectives
    from torch.distributed.distributed_c10d import _resolve_process_group as resolve_process_group
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache as clear_sharding_prop_cache
    from torch.distributed.tensor.placement_types import _StridedShard as StridedShard
    from torch.testing._internal.distributed.fake_pg import FakeStore
else:

    def __getattr__(name: str) -> Any:
        if name not in _WHEN_ASKED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _WHEN_ASKED[name].rpartition(".")
        return getattr(import_module(module), attribute)


_WHEN_ASKED = {
    # all_to_all_single_autograd, the one exchange of tokens for heads that has a derivative
    "functional_collectives": "torch.distributed._functional_collectives",
    # the process group that an operator names, for whoever counts what is sent
    "resolve_process_group": "torch.distributed.distributed_c10d._resolve_process_group",
    # DTensor asks it for shapes with whole tensors, which a count of a step's memory must not see
    "ShardingPropagator": "torch.distributed.tensor._sharding_prop.ShardingPropagator",
    # the box of a sharded tensor that a rank has, which checkpoints store; there is no public way to ask
    "compute_local_shape_and_global_offset": "torch.distributed.tensor._utils.compute_local_shape_and_global_offset",
    # forget shardings by meshes that are gone, before processes are forked
    "clear_sharding_prop_cache": "torch.distributed.tensor.debug._clear_sharding_prop_cache",
    # the placement of stacked matrices that are each cut, and of what FSDP and tensor parallelism both cut
    "StridedShard": "torch.distributed.tensor.placement_types._StridedShard",
    # the store of the process group "fake", by which one process prices a step of many
    "FakeStore": "torch.testing._internal.distributed.fake_pg.FakeStore",
}

# One call for a list of tensors: what torch's own optimisers are made of, where a call each would take longer than the arithmetic.
foreach_add_, foreach_copy_, foreach_lerp_ = torch._foreach_add_, torch._foreach_copy_, torch._foreach_lerp_
foreach_mul_, foreach_norm = torch._foreach_mul_, torch._foreach_norm
# The derivatives of softmax and of attention with what their forward passes kept, for operators whose backward is written by hand.
softmax_backward = torch._softmax_backward_data
cpu_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
cpu_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# The operators behind torch.distributed's functions: they return new tensors, and fake tensors and compilers see through them.
functional_operators = torch.ops._c10d_functional
item = torch.ops.aten._local_scalar_dense.default  # behind Tensor.item(): a fake tensor has no number to give


def varlen_attention_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of attention in segments, which torch's own public function has only under autograd (from torch 2.10 on)."""
    import torch.nn.attention.varlen  # registers it

    return torch.ops.torch_attn._varlen_attn_backward(*given)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 natively, which decides who computes attention."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def allow_lengths(tensor: Tensor) -> None:
    """Let a compiled graph take the tensor with any number of rows; torch's public mark_dynamic raises where there can be but one."""
    torch._dynamo.maybe_mark_dynamic(tensor, 0)


def let_collectives_be_fake() -> None:
    """Register what collectives give for fake tensors, which importing the file does."""
