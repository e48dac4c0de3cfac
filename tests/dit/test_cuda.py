"""What reaches the kernels of a GPU in a training step under its autocast: shapes without numbers (torch's FakeTensor), no kernel runs.

What they ask for is checked instead: one half-precision dtype for queries, keys and values, channels side by side, offsets of int32,
segments that the host knows; and nothing is read back, which such tensors cannot be.
"""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sora.config.build import build
from sora.cost.tally import CostCounter
from sora.cost.tracing import faked, gpu_casts
from sora.dit.attention.patterns import causal_attention, factorised_attention
from sora.dit.attention.varlen import attention_shapes
from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.plain import plain_block
from sora.dit.blocks.single import dual_then_single_block
from sora.dit.dit import HeadNorm
from sora.dit.layers.mlps import swiglu
from sora.dit.layers.norms import AcrossHeads, HeadLayerNorm
from sora.dit.layers.registers import register_tokens
from sora.training import activation_checkpointing as recompute
from tests.dit.published.test_parity import CASES, CLASSES, TEXT, Clip, inputs_of
from tests.dit.test_dit import Clip as PlainClip
from tests.dit.test_dit import network, packed
from tests.test_configs import node

BLOCKS = {
    "cross": {},
    "lean": {"block": lean_block},
    "fewer keys": {"block": lean_block, "kv_heads": 1},
    "parallel": {"block": parallel_block, "mlp": swiglu},
    "plain": {"block": plain_block},
    "dual": {"block": dual_block},
    "single": {"block": partial(dual_then_single_block, dual=1)},
    "expert": {"block": expert_block, "registers": partial(register_tokens, count=3)},
}


class Kernels(TorchDispatchMode):
    """Checks each call of flash attention, forwards and backwards, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sora_attend":
            *tensors, q_host, k_host, q_cu, k_cu, grids, _, _ = args
            assert func.__name__.split(".")[0] in ("varlen", "varlen_backward") and grids is None
            halves = [x for x in tensors if not (x.dtype == torch.float32 and x.shape == tensors[0].shape[1::-1])]  # less the log-sum-exp
            assert len(tensors) - len(halves) == (len(tensors) > 3)
            assert {x.dtype for x in halves} == {torch.bfloat16} and all(x.stride(-1) == 1 for x in halves)
            for host, cu in ((q_host, q_cu), (k_host, k_cu)):
                assert host.dtype == torch.int64 and not isinstance(host, FakeTensor)
                assert cu.dtype == torch.int32 and cu.is_contiguous() and cu.shape == host.shape
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


def trained(make, inputs) -> list[str]:
    """Which kernels a step calls; every weight has a gradient of its own dtype."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        Kernels() as kernels,
        CostCounter(),
    ):  # which leaves to the host what is the host's
        net = make()
        with gpu_casts():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = net(*(faked(part, fake) for part in inputs))
            out.float().square().sum().backward()
        assert all(value.grad is None or value.grad.dtype == value.dtype for value in net.parameters())
    return kernels.calls


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_published_networks_call_flash_attention_as_it_asks_to_be(name):
    _, grids, changes, _ = CASES[name]
    config = OmegaConf.merge(node("dit", name), changes)
    sizes = {"patch_channels": 3 * torch.tensor(list(config.patch)).prod().item(), "text_width": CLASSES if name == "dit_xl_2" else TEXT}
    if name == "ltx_video":  # whose heads are no multiple of 8 wide in that test
        config = OmegaConf.merge(config, {"width": 64, "rope": {"width": 64}})
    config.attention = {"_target_": "sora.dit.attention_shapes"}
    if name == "latte_xl_2":  # whose pattern is a mask, FlexAttention's work
        config.pattern = {"_target_": "sora.dit.full_attention"}
    dit = build(config, **sizes)
    with torch.no_grad():
        inputs = inputs_of(dit, [Clip(number, shape, dit, 0) for number, shape in enumerate(grids)])
    calls = trained(lambda: build(config, **sizes), inputs)
    assert calls.count("varlen.default") == calls.count("varlen_backward.default") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("changes", BLOCKS.values(), ids=BLOCKS)
def test_every_block_calls_flash_attention_as_it_asks_to_be(changes):
    def make():
        net = network(depth=2, attention=attention_shapes, **changes)
        recompute.recompute_all_but_attention(net)
        return net

    clips = [PlainClip(number) for number in range(4)]
    calls = trained(make, packed(clips, budget=25, max_clips=5))
    twice = changes.get("block", lean_block) in (lean_block, parallel_block)  # to the caption, too
    assert calls.count("varlen_backward.default") == (4 if twice else 2)


@pytest.mark.parametrize("norm", [HeadNorm(8, 1e-6), AcrossHeads(3, 8, 1e-6), HeadLayerNorm(8, 1e-6)], ids=lambda norm: type(norm).__name__)
def test_queries_and_keys_leave_their_norms_as_halves_and_with_exact_gains(norm):
    """Under a CPU's autocast, which leaves norms in half precision, no less than under a GPU's, which gives them back in float32."""
    with torch.no_grad():
        for value in norm.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = norm(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    with FakeTensorMode(), torch.no_grad():
        for name, value in list(norm.named_parameters()):
            setattr(norm, name, torch.nn.Parameter(torch.empty(value.shape, device="cuda"), requires_grad=False))
        torch.set_autocast_enabled("cuda", True)  # `torch.autocast` itself refuses where there is no GPU
        try:
            there = torch.empty(50, 3, 8, device="cuda", dtype=torch.bfloat16)
            assert F.rms_norm(there, (8,)).dtype == torch.float32
            assert norm(there).dtype == torch.bfloat16
        finally:
            torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("pattern", [factorised_attention, partial(causal_attention, frames=-1)])
def test_masks_are_told_to_attention_in_one_dtype(pattern):
    """FlexAttention's kernel is compiled, and so is not reached here."""
    told = []

    def kernel(q, k, v, q_segments, k_segments, mask=None):
        told.append((q.dtype, k.dtype, v.dtype, mask is not None))
        return torch.empty_like(q)

    net = network(depth=2, pattern=pattern, block=lean_block, attention=kernel)
    with torch.no_grad(), gpu_casts(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(*packed([PlainClip(1), PlainClip(2)], budget=22, max_clips=3))
    assert told == [(torch.bfloat16, torch.bfloat16, torch.bfloat16, masked) for masked in (True, False)] * 2
