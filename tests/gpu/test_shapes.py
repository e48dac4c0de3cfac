"""The check's steps on torch's device "meta", whose tensors have shapes and no numbers: what would make a GPU wait fails or is seen there.

Nothing is read back, which such tensors cannot be; and nothing comes from the host inside of a step but what nobody waits for.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu import step
from tests.gpu.batching import stock
from tests.gpu.networks import batches, trained, wanted
from tests.gpu.record import Place

PLACE = Place("cpu", True, Path("."))


class Moves(TorchDispatchMode):
    """Notes what goes from one device to another while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {value.device.type for value in args if isinstance(value, Tensor)}
        made = {out.device.type} if isinstance(out, Tensor) else set()
        unwaited = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2] is True)
        if len(given | made) > 1 and func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and not unwaited:
            self.seen.append(f"{func.__name__} {given} -> {made}")
        return out


def on_meta(name, monkeypatch, *words):
    """A module and two packs on the device."""
    real = torch.autocast  # which knows no device "meta"
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else real(kind, **how))
    item = wanted(PLACE, name, "trainer.precision=32-true", *words)
    found = batches(item)[:2]
    made = trained(PLACE, item)
    packs = [made.prepare(batch)[0] for batch in found]
    made.module.to("meta")
    return made, [[replace(pack, batch=pack.batch.to("meta"), noised=pack.noised.to("meta"))] for pack in packs]


@pytest.mark.slow
@pytest.mark.parametrize("name", step.NETWORKS)
def test_a_step_neither_reads_back_nor_brings_anything(name, monkeypatch):
    made, packs = on_meta(name, monkeypatch)
    with Moves() as moves:
        losses = [made.learn(each) for each in packs]
    assert all(loss.is_meta for loss in losses) and not moves.seen, moves.seen


@pytest.mark.slow
def test_neither_does_the_attention_that_packs_are_compared_with(monkeypatch):
    rows, length = 3, 8
    q = torch.empty(rows * length, 2, 16, device="meta", requires_grad=True)
    seen = torch.ones(rows, 1, 1, length, dtype=torch.bool, device="meta")
    with Moves() as moves:
        stock(seen, rows=rows)(q, q, q, None, None).sum().backward()
    assert not moves.seen


def test_what_is_brought_is_seen():
    with Moves() as moves:
        torch.ones(3).to("meta")
        torch.empty(3, device="meta").copy_(torch.ones(3))
        torch.empty(3, device="meta").add_(1.0)
        torch.ones(3).to("meta", non_blocking=True)
        torch.empty(3, device="meta").copy_(torch.ones(3), non_blocking=True)
    assert len(moves.seen) == 2
