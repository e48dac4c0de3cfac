"""Ranks that share packs equal one process: for every kind of block and pattern, in products with copies and shards; and mutants do not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from sora.config.build import build
from sora.dit.attention import patterns
from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.plain import plain_block
from sora.dit.blocks.single import dual_then_single_block, single_block
from sora.dit.layers.clip_shape import clip_shape
from sora.dit.layers.registers import register_tokens
from sora.parallel import context
from sora.parallel.context import AxisShard, Slicer, Ulysses, spread_context
from sora.tokens import Segments, join
from sora.training import activation_checkpointing as recompute
from tests.dit.published.test_parity import CASES
from tests.dit.test_dit import TEXT, P
from tests.test_configs import node
from tests.training.groups import in_ranks
from tests.training.tokens import packs_of, task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
KINDS: dict[str, dict[str, Any]] = {
    "cross": {},
    "lean": {"block": lean_block},
    "plain": {"block": plain_block},
    "parallel": {"block": parallel_block, "kv_heads": 4},
    "dual": {"block": dual_block},
    "single": {"block": single_block},
    "dual then single": {"block": partial(dual_then_single_block, dual=1)},
    "expert": {"block": expert_block},
    "factorised": {"pattern": patterns.factorised_attention},
    "windowed": {"pattern": partial(patterns.windowed_attention, frames=1, rows=0, columns=1)},
    "causal": {"pattern": partial(patterns.causal_attention, frames=-1)},
    "clip shape": {"clip_shape": partial(clip_shape, count=3), "pooled_text": False},
    "nothing of a whole clip": {"position": None, "pooled_text": False},
}
PUBLISHED = ("wan_2_1_1_3b", "latte_xl_2", "cogvideox_2b", "hunyuan_video", "dit_xl_2", "ltx_video")


def published(name: str) -> nn.Module:
    """A small network of that kind, with weights that let everything matter."""
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    channels = P * torch.tensor(list(node("dit", name).patch)).prod().item()
    config: Any = OmegaConf.merge(node("dit", name), CASES[name][2])
    dit = build(config, patch_channels=channels, text_width=TEXT)
    for parameter in dit.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    dit.embed, dit.out = nn.Linear(P, dit.width), nn.Linear(dit.width, P)
    return dit


def learnt(made, *, step: int = 1, pooled: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """The summed loss of a step's packs, its gradients, and the losses of the clips: of what this rank has of them."""
    made.zero_grad()
    losses, clips = [], []
    vectors = torch.linspace(-1, 1, 5 * max(1, pooled)).view(5, -1)
    packs = packs_of(step)
    packs = [replace(pack, text=replace(pack.text, pooled=vectors)) for pack in packs] if pooled else packs
    for prepared in made.prepare(packs, torch.device("cpu")):
        loss = made(prepared)
        loss.total.backward()
        losses.append(loss.total.detach())
        clips.append(loss.by_sample())
    gradients = {name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in made.named_parameters()}
    return torch.stack(losses), gradients, torch.cat(clips)


def summed(found) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    losses, gradients, clips = found
    for value in (losses, *gradients.values(), clips):
        dist.all_reduce(value)
    return losses, gradients, clips


def apart(found, wanted) -> float:
    """The largest relative difference. A gradient that is rounding alone is compared to the largest of them."""
    most = max(value.norm() for value in wanted[1].values())
    gradients = [(found[1][name] - value).norm() / max(value.norm(), 1e-3 * most) for name, value in wanted[1].items()]
    return max(*gradients, (found[0] / wanted[0] - 1).abs().max(), (found[2] / wanted[2] - 1).abs().max()).item()


def cut(made, ranks: int):
    spread_context(made, init_device_mesh("cpu", (ranks,), mesh_dim_names=("context",))["context"])
    return made


def kinds(ranks: int) -> dict[str, dict[str, Any]]:
    some = ("lean", "dual then single", "windowed", "clip shape")
    return KINDS | {"fewer heads of keys": {"kv_heads": 2}} if ranks == 2 else {name: KINDS[name] for name in some}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_kind_of_network_learns_from_a_part_of_each_pack_what_it_does_from_all(tmp_path, ranks):
    wanted = {name: learnt(task(**changes)) for name, changes in kinds(ranks).items()}

    def work(rank: int) -> None:
        for name, changes in kinds(ranks).items():
            made = cut(task(**changes), ranks)
            if name in ("cross", "dual"):
                recompute.recompute_all_but_attention(made.dit)
            mine = learnt(made)
            assert apart(mine, wanted[name]) > 0.1, name  # it is a part
            assert apart(summed(mine), wanted[name]) < 1e-5, name

    in_ranks(ranks, tmp_path, work)


@pytest.mark.slow
def test_published_networks_learn_so_too(tmp_path):
    wanted = {}
    for name in PUBLISHED:
        made = task()
        made.dit = published(name)
        wanted[name] = learnt(made, pooled=6)

    def work(rank: int) -> None:
        for name in PUBLISHED:
            made = task()
            made.dit = published(name)
            assert apart(summed(learnt(cut(made, 2), pooled=6)), wanted[name]) < 1e-5, name

    in_ranks(2, tmp_path, work)


@pytest.mark.slow
@pytest.mark.long
def test_blocks_that_share_packs_compile_into_one_graph_of_a_kind():
    """Ragged packs, masks and all; nothing is compiled again for other lengths."""
    done = subprocess.run([sys.executable, "-m", "tests.training.compiled_parts"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 4  # of two kinds, on two ranks
    for each in found:
        assert each["graphs"] == 2 and each["breaks"] == 0, each  # even and odd blocks, or the last one apart
        assert each["apart"] < 1e-5, each


def test_a_network_of_context_ranks_takes_whole_packs_too(tmp_path):
    """Sampling and validation give it whole packs, on one rank of several: nobody else is waited for, and no bit is another."""
    batch = packs_of(0)[1]
    noised = task().objective.noise(batch, seed=0)
    alone = task().dit(noised.tokens, noised.levels, batch.text)
    assert alone.shape == noised.tokens.patches.shape and alone.abs().max() > 0.1

    def work(rank: int) -> None:
        made = cut(task(), 2)
        if rank == 0:
            torch.save(made.dit(noised.tokens, noised.levels, batch.text), tmp_path / "found.pt")

    in_ranks(2, tmp_path, work)
    assert torch.equal(torch.load(tmp_path / "found.pt", weights_only=True), alone)


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_of_any_axis_make_the_whole(tmp_path, ranks):
    """Lengths that do not divide, empty segments, an axis shorter than the ranks."""
    axes = [(5, 0, 7, 1), (0, 0, 2, 0), (3, 3, 3, 3), (1, 0, 0, 0)]

    def work(rank: int) -> None:
        group = dist.group.WORLD
        for lengths in axes:
            whole = Segments.of(lengths)
            part = AxisShard.cut(whole, group)
            rows = torch.arange(3.0 * whole.total).view(-1, 3)
            assert torch.equal(part.everyones(part.mine(rows)), rows) and part.total == len(part.mine(rows))
            assert torch.equal(part.added(torch.tensor(part.lengths)), torch.tensor(lengths))
            assert max(part.sizes) - min(part.sizes) <= 1
        for first, second in pairwise(axes):
            both = [Segments.of(lengths) for lengths in (first, second)]
            joint, alone = AxisShard.cut(both[0], group).beside(AxisShard.cut(both[1], group)), join(*both)
            words = torch.cat((torch.arange(both[0].total), 100 + torch.arange(both[1].total)))
            mine = [
                AxisShard.cut(segments, group).mine(here) for segments, here in zip(both, words.split([s.total for s in both]), strict=True)
            ]
            local = join(*(AxisShard.cut(segments, group) for segments in both))
            came = joint.everyones(torch.cat(mine)[local.order])
            assert torch.equal(came[joint.order], words[alone.order])
            assert torch.equal(came[joint.order][joint.places], came)

    in_ranks(ranks, tmp_path, work)


def test_what_cannot_be_cut_is_refused_by_name(tmp_path):
    def work(rank: int) -> None:
        for changes, told in (
            ({"heads": 1, "width": 16}, "1 heads with 1 of keys do not divide over trainer.context=2.*dit.heads"),
            ({"kv_heads": 1}, "4 heads with 1 of keys do not divide over trainer.context=2.*dit.kv_heads"),
            ({"registers": partial(register_tokens, count=2)}, "dit.registers belong to whole clips"),
        ):
            with pytest.raises(ValueError, match=told):
                cut(task(**changes), 2)
        with pytest.raises(ValueError, match="trainer.context=2 cuts packs of tokens.*Linear trains on none; set trainer.context=1"):
            cut(nn.Linear(2, 2), 2)
        made = cut(task(), 2)
        pack = packs_of(1)[1]
        shorter = replace(pack.tokens, patches=pack.tokens.patches[:31], positions=pack.tokens.positions[:31])
        shorter = replace(shorter, segments=Segments.of([*pack.tokens.segments.lengths[:-1], pack.tokens.segments.lengths[-1] - 1]))
        with pytest.raises(ValueError, match="31 tokens does not divide over 2 context ranks; set plan.budget to a multiple"):
            made.prepare([replace(pack, tokens=shorter, conditions=pack.conditions[:31])], torch.device("cpu"))

    in_ranks(2, tmp_path, work)


def unshifted_positions(monkeypatch) -> None:
    """Every rank takes its tokens to stand where the first one's do."""
    plain_cut = context._cut
    monkeypatch.setattr(context, "_cut", lambda tokens, part: replace(plain_cut(tokens, part), positions=tokens.positions[: part.total]))


def noise_of_its_own(monkeypatch) -> None:
    """The ranks of a group draw different noise for one pack."""
    plain_pack = Slicer.pack

    def pack(self, batch, noised):
        return plain_pack(self, batch, replace(noised, tokens=noised.tokens.with_patches(noised.tokens.patches + 0.1 * dist.get_rank())))

    monkeypatch.setattr(Slicer, "pack", pack)


def parts_alone(monkeypatch) -> None:
    """A rank attends to its own part only."""
    monkeypatch.setattr(Ulysses, "__call__", lambda self, q, k, v, q_in, k_in, mask=None: self.attention(q, k, v, q_in, k_in, mask))


def heads_mixed_up(monkeypatch) -> None:
    plain_back = Ulysses._by_tokens
    monkeypatch.setattr(Ulysses, "_by_tokens", lambda self, part, o: plain_back(self, part, o.flip(1)))


def means_of_parts(monkeypatch) -> None:
    """The mean of a caption is of what words a rank has."""
    monkeypatch.setattr(AxisShard, "added", lambda self, sums: sums)


def no_gradient_of_others(monkeypatch) -> None:
    """What others do with a sum is not learnt from."""
    monkeypatch.setattr(context._Added, "backward", staticmethod(lambda ctx, *grads: (grads[0], None)))


@pytest.mark.parametrize(
    "mutant", [unshifted_positions, noise_of_its_own, parts_alone, heads_mixed_up, means_of_parts, no_gradient_of_others]
)
def test_mutants_are_caught(tmp_path, monkeypatch, mutant):
    wanted = learnt(task())

    def work(rank: int) -> None:
        mutant(monkeypatch)
        assert apart(summed(learnt(cut(task(), 2))), wanted) > 1e-4

    in_ranks(2, tmp_path, work)
