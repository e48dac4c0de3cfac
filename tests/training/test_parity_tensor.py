"""A network whose blocks are spread over ranks is the network: outputs and gradients of one process, for every kind of block; and mutants
are caught. Networks are in float64, so that what is left is the rounding of rotations, which are in float32 everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from sora.dit.attention.patterns import full_attention, windowed_attention
from sora.dit.blocks.lean import lean_block
from sora.dit.dit import cross_block
from sora.dit.layers.mlps import swiglu
from sora.dit.layers.modulation import LoRAModulation, ZeroModulation
from sora.dit.layers.norms import rms_across_heads
from sora.dit.layers.registers import register_tokens
from sora.parallel import collectives, tensor
from sora.parallel import tensor_plan as shares
from sora.parallel.tensor import spread_tensor
from sora.system import distributed as ranks
from tests.dit.test_blocks import MIXED, NAMES
from tests.dit.test_dit import Clip, network, packed
from tests.training.groups import in_ranks
from tests.training.test_parity_context import apart as context_apart
from tests.training.test_parity_context import learnt, published
from tests.training.tokens import task

pytestmark = pytest.mark.slow

KINDS = dict(zip(NAMES, MIXED, strict=True)) | {
    "lean": {"block": lean_block, "modulation": LoRAModulation(rank=3), "kv_heads": 4},
    "lean zero": {"block": lean_block, "modulation": ZeroModulation()},
    "swiglu": {"block": cross_block, "mlp": swiglu, "qk_norm": partial(rms_across_heads, eps=1e-5)},
    "windowed": {"block": cross_block, "pattern": partial(windowed_attention, frames=1, rows=1, columns=1)},
    "registers": {"block": cross_block, "registers": partial(register_tokens, count=2), "pattern": full_attention},
}
BOUND = 1e-6
ROOT = Path(__file__).resolve().parents[2]


def made(kind: str):
    """A network with heads for four ranks; of fewer keys and values than heads where the kind says so."""
    changes = dict(KINDS[kind])
    if "kv_heads" in changes:
        changes |= {"heads": 8, "kv_heads": 4, "width": 128}
    settings: dict[str, Any] = {"width": 64, "heads": 4} | changes
    return network(**settings).double()


def found(dit, *, budget: int, words: int):
    """The output for a pack, and the gradients of inputs and parameters; 25 tokens and 23 words do not divide over the ranks."""
    tokens, levels, text = packed([Clip(number) for number in range(4)], budget=budget, max_clips=5, max_words=words)
    patches, states = tokens.patches.double().requires_grad_(), text.states.double().requires_grad_()
    out = dit(tokens.with_patches(patches), levels, type(text)(states, text.segments))[: tokens.real]
    out.square().mean().backward()
    values = {"out": out, "patches": patches.grad, "text": states.grad}
    values |= {name: parameter.grad for name, parameter in dit.named_parameters()}
    return {name: None if value is None else ranks.whole(value.detach()) for name, value in values.items()}


def apart(mine, theirs) -> float:
    """The largest relative difference; a gradient that only one has is far away."""
    assert mine.keys() == theirs.keys()
    worst = 0.0
    for name, value in theirs.items():
        if (value is None) != (mine[name] is None):
            return float("inf")
        if value is not None:
            worst = max(worst, float((mine[name] - value).norm() / value.norm().clamp_min(1e-9)))
    return worst


def mesh_of(count: int) -> DeviceMesh:
    return init_device_mesh("cpu", (count,), mesh_dim_names=("tensor",))


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (2, ["lean", "dual then single"]),
        pytest.param(2, list(KINDS), marks=pytest.mark.slow),
        pytest.param(4, ["lean", "parallel", "dual", "expert", "swiglu", "registers"], marks=pytest.mark.slow),
    ],
    ids=["two of them", "all on 2", "some on 4"],
)
def test_every_kind_of_block_equals_one_process(tmp_path, count, kinds):
    def work(rank: int) -> None:
        mesh = mesh_of(count)
        for kind in kinds:
            alone, together = made(kind), made(kind)
            spread_tensor(together, mesh)
            assert [name for name, _ in together.named_parameters()] == [name for name, _ in alone.named_parameters()], kind
            for mine, theirs in zip(together.parameters(), alone.parameters(), strict=True):
                assert torch.equal(ranks.whole(mine.detach()), theirs), kind
            for budget, words in ((25, 23), (24, 12))[: 4 // count]:
                alone.zero_grad()
                together.zero_grad()
                off = apart(found(together, budget=budget, words=words), found(alone, budget=budget, words=words))
                assert off <= BOUND, (kind, budget, off)

    in_ranks(count, tmp_path, work)


def test_a_rank_has_its_part_of_every_matrix_of_the_blocks(tmp_path):
    def work(rank: int) -> None:
        mesh = mesh_of(2)
        for kind in KINDS:
            dit = made(kind)
            spread_tensor(dit, mesh)
            for name, value in dit.blocks.named_parameters():
                small = value.ndim == 1 or name.endswith("own.down.weight")  # of low rank
                assert value.to_local().numel() == value.numel() // (1 if small else 2), (kind, name)

    in_ranks(2, tmp_path, work)


def no_sum_of_vectors(monkeypatch) -> None:
    """The gradients of norms and tables are those of a rank's own tokens."""
    monkeypatch.setattr(tensor, "copied", lambda tensors, group: list(tensors))


def no_sum_of_branches(monkeypatch) -> None:
    """Each rank goes on with its own heads and channels only."""
    monkeypatch.setattr(collectives, "_own_rows_of_sum", collectives._own_rows)


def biases_by_all(monkeypatch) -> None:
    monkeypatch.setattr(shares, "_once", lambda axis, vector: vector)


def one_stack(monkeypatch) -> None:
    """Queries, keys and values cut as one matrix: the first rank has all queries."""
    cut = shares._cut

    def whole(*arguments):
        return {name: share._replace(placement=_unstacked(share.placement)) for name, share in cut(*arguments).items()}

    monkeypatch.setattr(shares, "_cut", whole)


def _unstacked(placement):
    return Shard(0) if isinstance(placement, shares.StridedShard) else placement


def rows_of_the_first(monkeypatch) -> None:
    """Every rank modulates its tokens as the first rank's."""
    own = tensor._own_rows
    monkeypatch.setattr(tensor, "_own_rows", lambda index, axis: own(index, axis._replace(rank=0)))


def own_mean(monkeypatch) -> None:
    """A norm over all heads is over a rank's own."""
    monkeypatch.setattr(tensor, "total", lambda x, group: x * 2)


MUTANTS = [
    (no_sum_of_vectors, "cross"),
    (no_sum_of_vectors, "expert"),
    (no_sum_of_branches, "cross"),
    (no_sum_of_branches, "lean"),
    (biases_by_all, "lean"),
    (biases_by_all, "dual"),
    (one_stack, "cross"),
    (rows_of_the_first, "single"),
    (own_mean, "dual"),
]


@pytest.mark.slow
def test_mutants_are_caught(tmp_path):
    def work(rank: int) -> None:
        mesh = mesh_of(2)
        for mutant, kind in MUTANTS:
            with pytest.MonkeyPatch.context() as patch:
                mutant(patch)
                alone, together = made(kind), made(kind)
                spread_tensor(together, mesh)
                off = apart(found(together, budget=25, words=23), found(alone, budget=25, words=23))
            assert off > 1e-2, (mutant.__name__, kind, off)

    in_ranks(2, tmp_path, work)


def test_what_ranks_cannot_share_is_refused_by_name_and_left_as_it_was(tmp_path):
    class Other(torch.nn.Module):
        """A block nobody has a plan for."""

        joint = False

        def begin(self) -> None: ...

    unsplit = network(width=64, heads=4, block=cross_block)
    unsplit.blocks[1].mlp = torch.nn.Linear(64, 64)
    refused = {
        r"trainer.tensor=2: dit.heads is 3, which does not divide": network(width=48, heads=3),
        r"trainer.tensor=2: dit.kv_heads is 1, which does not divide": network(width=64, heads=4, kv_heads=1),
        r"the width inside an MLP .* is 33, which does not divide": network(width=32, heads=2, mlp_ratio=33 / 32),
        r"block 0 is a Other which has no plan": network(block=lambda number, parts: Other()),
        r"mlp of block 1 is a Linear, which has no plan": unsplit,
        r"this task has none": torch.nn.Linear(2, 2),
    }

    def work(rank: int) -> None:
        mesh = mesh_of(2)
        for message, dit in refused.items():
            kinds = [type(module) for module in dit.modules()]
            with pytest.raises(ValueError, match=message):
                spread_tensor(dit, mesh)
            assert [type(module) for module in dit.modules()] == kinds
            assert not any(isinstance(value, DTensor) for value in dit.parameters())

    in_ranks(2, tmp_path, work)


def test_one_rank_leaves_a_network_as_it_is(tmp_path):
    def work(rank: int) -> None:
        dit = made("cross")
        kinds = [type(module) for module in dit.modules()]
        spread_tensor(dit, mesh_of(1))
        assert [type(module) for module in dit.modules()] == kinds

    in_ranks(1, tmp_path, work)


PUBLISHED = ("wan_2_1_1_3b", "ltx_video", "dit_xl_2", "cogvideox_2b", "hunyuan_video")


@pytest.mark.slow
def test_published_networks_equal_one_process(tmp_path):
    """As tasks, of which only the blocks of the network are spread; and one reads the places of whole clips."""

    def made_of(name: str):
        made = task()
        made.dit = published(name)
        return made

    def work(rank: int) -> None:
        mesh = mesh_of(2)
        for name in PUBLISHED:
            made = made_of(name)
            spread_tensor(made, mesh)
            losses, gradients, clips = learnt(made, pooled=6)
            found = losses, {key: ranks.whole(value) for key, value in gradients.items()}, clips
            assert context_apart(found, learnt(made_of(name), pooled=6)) < 1e-4, name  # in float32, some without norms of queries
        with pytest.raises(ValueError, match="block 1 is a TemporalBlock and reads the places of whole clips"):
            spread_tensor(made_of("latte_xl_2"), mesh)

    in_ranks(2, tmp_path, work)


def test_a_spread_network_predicts_without_learning_and_in_half_precision(tmp_path):
    def work(rank: int) -> None:
        mesh = mesh_of(2)
        for kind in ("lean", "dual"):
            alone, together = made(kind).float(), made(kind).float()
            spread_tensor(together, mesh)
            inputs = packed([Clip(number) for number in range(4)], budget=25, max_clips=5, max_words=23)
            with torch.no_grad():
                wanted, mine = alone(*inputs), together(*inputs)
                assert not mine.requires_grad and (mine - wanted).norm() <= 1e-5 * wanted.norm(), kind
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    rough = together(*inputs)
            assert (rough - wanted).norm() <= 0.1 * wanted.norm(), kind

    in_ranks(2, tmp_path, work)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_blocks_are_one_graph_and_the_same_network():
    done = subprocess.run([sys.executable, "-m", "tests.training.compiled_tensor"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["apart"] <= 1e-5 and told["breaks"] == 0 and told["graphs"] == 1
