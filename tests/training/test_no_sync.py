"""The step never waits for the device: no number of a device's tensor is read by the host in forward, backward and optimiser.

Tensors of torch's device "meta" have shapes and no numbers, so that whatever would make a GPU wait (`.item()`, `.cpu()`, `.tolist()`,
`.numpy()`, `bool(tensor)`, a shape that depends on numbers) fails on them. On a GPU the same is
`torch.cuda.set_sync_debug_mode("error")`. The loop around the step reads six numbers once a step, after the backward: whether the loss
and the gradients are finite decides whether the step is taken (`sora.training.module`).
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from sora.dit.attention import patterns
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.single import dual_then_single_block
from sora.dit.dit import cross_block
from sora.dit.layers.clip_shape import clip_shape
from sora.dit.layers.modulation import LoRAModulation, ZeroModulation
from sora.dit.layers.registers import register_tokens
from sora.dit.layers.rope import learned_positions
from sora.training import activation_checkpointing as recompute
from sora.training.optim.optimizers import adamw
from tests.dit.test_dit import Clip, network, packed

pytestmark = pytest.mark.slow

PATTERNS = {
    "full": patterns.full_attention,
    "factorised": patterns.factorised_attention,
    "windowed": partial(patterns.windowed_attention, frames=1, rows=1, columns=0),
    "causal": partial(patterns.causal_attention, frames=-1),
}
READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "index by a mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("name", READS)
def test_the_guard_catches_what_would_wait(name):
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        READS[name](torch.ones(2, 3, device="meta"))


CHANGES = {
    **{
        f"{name}-{called}": {"pattern": PATTERNS[name], "block": block}
        for name in PATTERNS
        for called, block in (("cross", cross_block), ("lean", lean_block))
    },
    "joint": {"block": partial(dual_then_single_block, dual=1), "modulation": ZeroModulation(), "kv_heads": 1},
    "expert": {"block": expert_block, "modulation": LoRAModulation(rank=2), "registers": partial(register_tokens, count=2)},
    "parallel": {
        "block": parallel_block,
        "position": partial(learned_positions, count=3, time_scale=4.0),
        "clip_shape": partial(clip_shape, count=3),
    },
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_step_reads_nothing_back(changes, monkeypatch):
    real = torch.autocast  # which knows no device "meta"
    monkeypatch.setattr(torch, "autocast", lambda device_type, **how: nullcontext() if device_type == "meta" else real(device_type, **how))
    net = network(**changes)
    recompute.recompute_all_but_attention(net)
    net = net.to("meta")
    inputs = [part.to("meta") for part in packed([Clip(number) for number in range(4)], budget=25, max_clips=5)]
    (optimizer,) = adamw(dict(net.named_parameters()), lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = False, True  # fused kernels are for devices that exist
    for _ in range(2):
        out = net(*inputs)
        assert out.is_meta
        out.square().sum().backward()
        torch.nn.utils.get_total_norm([parameter.grad for parameter in net.parameters()])
        optimizer.step()
        optimizer.zero_grad()
