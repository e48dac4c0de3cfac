"""All private names of torch that sora uses, under public names, because a new torch may change them without notice.

Last tested with torch 2.13: `tests/system/test_torch_private.py` uses each as sora does, and says what another torch has broken. Names in
`_WHEN_ASKED` are imported at first use, because they import slow modules such as torch.distributed.tensor.
"""

# ruff: noqa: F401  names are imported for others

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

# A step is traced on tensors without memory to count its cost; the mode for that has no public name.
from torch._guards import active_fake_mode
from torch._ops import OpOverload  # the class of operators; those of attention are recognised by name
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

# Counts operators in a mode that sees each of them, below sharded tensors.
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves  # finds the tensors in an operator's result

# Receives batches from worker processes in a thread, and kills workers that hang; no public class allows this.
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
    # all_to_all_single_autograd: the only all-to-all with a derivative
    "functional_collectives": "torch.distributed._functional_collectives",
    # the process group of an operator, for counting the bytes that are sent
    "resolve_process_group": "torch.distributed.distributed_c10d._resolve_process_group",
    # DTensor computes shapes with it on whole tensors, which must not count as memory of a step
    "ShardingPropagator": "torch.distributed.tensor._sharding_prop.ShardingPropagator",
    # this rank's box of a sharded tensor, which checkpoints store
    "compute_local_shape_and_global_offset": "torch.distributed.tensor._utils.compute_local_shape_and_global_offset",
    # forgets shardings over meshes that are gone, before processes are forked
    "clear_sharding_prop_cache": "torch.distributed.tensor.debug._clear_sharding_prop_cache",
    # the placement of stacked matrices whose parts are each cut, and of parameters that both FSDP and tensor parallelism cut
    "StridedShard": "torch.distributed.tensor.placement_types._StridedShard",
    # the store of the process group "fake", with which one process prices a step of many
    "FakeStore": "torch.testing._internal.distributed.fake_pg.FakeStore",
}

# One call for a list of tensors, as in torch's optimisers; one call per tensor would take longer than the arithmetic.
foreach_add_, foreach_copy_, foreach_lerp_ = torch._foreach_add_, torch._foreach_copy_, torch._foreach_lerp_
foreach_mul_, foreach_norm = torch._foreach_mul_, torch._foreach_norm
# Backward passes of softmax and attention, given the saved results of their forward, for operators with a hand-written backward.
softmax_backward = torch._softmax_backward_data
cpu_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
cpu_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# The operators behind torch.distributed's functions: they return new tensors, and work with fake tensors and compilers.
functional_operators = torch.ops._c10d_functional
item = torch.ops.aten._local_scalar_dense.default  # behind Tensor.item(); a fake tensor has no number to return


def varlen_attention_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of variable-length attention; torch's public function (from torch 2.10 on) has it only through autograd."""
    import torch.nn.attention.varlen  # registers it

    return torch.ops.torch_attn._varlen_attn_backward(*given)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices natively; it decides which attention kernel is used."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def allow_lengths(tensor: Tensor) -> None:
    """Let a compiled graph take any number of rows of the tensor. torch's public mark_dynamic raises if only one number is possible."""
    torch._dynamo.maybe_mark_dynamic(tensor, 0)


def let_collectives_be_fake() -> None:
    """Register the results of collectives for fake tensors, by importing the file that does so."""
