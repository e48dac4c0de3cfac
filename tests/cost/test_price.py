"""The price of a run: sums that must be, and what is told of runs that would not go."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from experiments.cluster_prices import Item, compared
from sora.config.compose import compose
from sora.cost.price import Costs, arranged, batch_of, bill, fitted, of_any_depth, unseen_stages
from sora.cost.tracing import traced
from sora.tokens import Grid


def long(test):
    """Whole networks are traced; what `make test` runs of a price stands at the end."""
    return pytest.mark.slow(pytest.mark.long(test))


CLIPS = [(Grid(3, 8, 8), 7), (Grid(1, 4, 8), 5), (Grid(1, 4, 8), 5)]  # 256 tokens
TOY = ["task=diffusion", "dit=toy", "plan.budget=256", "plan.max_clips=4", "steps=1000"]


def item_of(*words, packs=(CLIPS,)):
    return Item(compose("plan", [*TOY, *words]).config, {"patch_channels": 16, "text_width": 24}, packs)


def wanted(*words, packs=(CLIPS,), epoch: float | None = 10.0):
    return replace(item_of(*words, packs=packs).wanted, epoch=epoch)


@pytest.fixture(scope="module")
def bills():
    trainers = {
        "one": ["cluster=h100x1", "trainer=gpu"],
        "ddp": ["cluster=h100x16", "trainer=ddp"],
        "fsdp": ["cluster=h100x16", "trainer=fsdp"],
        "hsdp": ["cluster=h100x16", "trainer=hsdp"],
        "auto": ["cluster=h100x16"],
        "auto alone": ["cluster=h100x1"],
    }
    packs = {"one": 1, "auto alone": 1}
    return {name: bill(wanted(*words, f"plan.packs={packs.get(name, 16)}")) for name, words in trainers.items()}


@long
def test_every_rank_holds_its_share(bills):
    one, ddp, fsdp, hsdp = (bills[name].memory for name in ("one", "ddp", "fsdp", "hsdp"))
    numbers = bills["one"].numbers
    assert one.weights == one.average == one.gradients == 4 * numbers == ddp.weights
    assert one.moments == pytest.approx(8 * numbers, rel=0.01)  # and a count for each tensor
    for shards, part in ((16, fsdp), (8, hsdp)):
        assert part.weights == part.average == part.gradients
        assert 4 * numbers / shards <= part.weights <= 4 * numbers / shards * 1.05  # what does not divide is filled up
    assert fsdp.largest < hsdp.largest < ddp.largest
    for part in (one, ddp, fsdp, hsdp):
        assert part.largest > part.weights + part.average + part.moments + part.kept > 0


@long
def test_messages_are_those_of_rings(bills):
    """FSDP gathers each block's weights forwards and backwards and the rest once, all in bf16, and reduces every gradient in fp32."""
    dit = item_of("cluster=h100x1").module().task.dit
    numbers, blocks = bills["one"].numbers, sum(value.numel() for value in dit.blocks.parameters())
    gathered, reduced = 2 * (numbers + blocks), 4 * numbers
    assert bills["fsdp"].sent["shard"] == pytest.approx((gathered + reduced) * 15 / 16, rel=0.05)
    assert bills["hsdp"].sent["shard"] == pytest.approx((gathered + reduced) * 7 / 8, rel=0.05)
    assert bills["hsdp"].sent["replicate"] == pytest.approx(2 * reduced / 8 / 2, rel=0.05)
    assert bills["ddp"].sent["replicate"] == pytest.approx(2 * reduced * 15 / 16, rel=0.01)
    assert not bills["one"].sent


@long
@pytest.mark.parametrize("name", ["tokens shared by two ranks", "products shared by two ranks"])
def test_what_ranks_that_share_packs_keep_multiply_and_send_is_what_was_foretold(tmp_path, name):
    """Against torch's allocator, its counter of operations, and the bytes that the kernel was handed."""
    row = compared(name, tmp_path)
    assert max(row["memory_error"], row["kept_error"], row["sent_error"]) < 0.01, row
    assert row["flops_error"] == row["model_error"] == 0


@long
def test_many_blocks_are_as_a_few_and_more_of_the_same():
    item = wanted("cluster=h100x4", "plan.packs=4", "dit.depth=10", "trainer=fsdp", "recompute=every_n")
    trainer, ranks, _ = arranged(item.launch.trainer, item.launch.cluster, [])
    batches = [batch_of(item, CLIPS, 256)]
    few = of_any_depth(item, batches, trainer, ranks)
    trainer, ranks, _ = arranged(item.launch.trainer, item.launch.cluster, [])
    all_ = traced(lambda: item.module(None), batches, trainer=trainer, ranks=ranks, gpu=True)
    for part in ("weights", "average", "moments", "gradients", "flops", "attention", "saved", "whole", "numbers"):
        assert getattr(few, part) == getattr(all_, part), part
    assert few.kept == pytest.approx(all_.kept, rel=1e-3) and few.largest == pytest.approx(all_.largest, rel=0.01)
    assert all(few.sent[axis] == pytest.approx(size, rel=1e-3) for axis, size in all_.sent.items())


@long
def test_operations_are_those_of_the_plan(bills):
    item = wanted("cluster=h100x16", "trainer=fsdp", "plan.packs=16")
    one = float(Costs(item.flops, [CLIPS]).model[0])
    assert bills["one"].flops == one and bills["fsdp"].flops == 16 * one
    assert bills["fsdp"].executed == pytest.approx(16 * bills["one"].executed)
    assert bills["fsdp"].tokens == 16 * 256 and bills["fsdp"].clips == 48
    assert 1.0 < bills["one"].executed / one < 1.4  # flash attention computes its scores twice backwards; nothing else is done again


@long
def test_time_and_money_follow(bills):
    found = bills["fsdp"]
    half = replace(found, cluster=replace(found.cluster, price=2 * found.cluster.price))
    assert half.money == 2 * found.money == pytest.approx(2 * 1000 * found.time.whole / 3600 * 16 * 3.0)
    assert found.time.computing == pytest.approx(found.executed / 16 / (0.45 * 989e12))
    assert found.epochs == 100.0
    assert found.saved == pytest.approx(4 * found.numbers * 4, rel=0.02)  # weights, average and two moments
    said = "\n".join(found.lines())
    assert "16 x NVIDIA H100" in said and "45.0% of 989 TFLOP/s" in said and "trainer.devices=8 trainer.nodes=2: shard 16" in said
    assert "WARNING" not in said and json.dumps(found.figures)


@long
def test_auto_is_priced_as_what_it_would_be_on_the_cluster_and_says_so(bills):
    for auto, named, words in (
        ("auto", "ddp", "trainer=auto, which is trainer=ddp there"),
        ("auto alone", "one", "which is trainer=gpu there"),
    ):
        assert bills[auto].figures == bills[named].figures
        said = "\n".join(bills[auto].lines())
        assert words in said and "precision        bf16-mixed: 989 TFLOP/s" in said


@long
def test_warnings_come_before_the_money():
    lines = bill(wanted("cluster=h100x2", "trainer=cpu", "plan.packs=1")).lines()
    assert [line for line in lines if line.startswith("WARNING")] == lines[:2]
    assert "is for CPUs, and priced as if GPUs computed in 32-true; trainer=auto" in lines[0] and "trainer=auto" in lines[1]


@long
def test_the_budget_that_fits_is_where_memory_ends(bills):
    fits = bills["one"].memory.budget
    room = bills["one"].memory.largest / (80e9 * 0.92)
    assert fits > 256 / room / 2
    more = bill(wanted("cluster=h100x1", "trainer=gpu", "plan.budget=1024", "plan.max_clips=16", packs=[CLIPS * 4], epoch=None)).memory
    slope = (more.largest - bills["one"].memory.largest) / 768
    assert fits == pytest.approx(256 + (bills["one"].memory.room - bills["one"].memory.largest) / slope, rel=0.1)


@long
def test_what_would_not_go_is_told():
    item = wanted("cluster=h100x16", "trainer=fsdp", "plan.packs=3", "cluster.memory=0.0001", epoch=0.5)
    found = "\n".join(bill(item).warnings)
    assert "13 of 16 ranks would idle" in found and "plan.packs=3 does not divide over 16; priced as plan.packs=16" in found
    assert "plan.budget=256 does not fit" in found and "the longest clip has 192 tokens and 0 fit" in found
    assert "an epoch is 0.09 of a step" in found
    idle = wanted("cluster=h100x8", "trainer=gpu")
    assert "7 of 8 devices idle" in "\n".join(bill(idle).warnings)


def test_a_cluster_is_a_device_and_a_number():
    config = compose("plan", ["task=diffusion", "cluster=h100x512", "cluster.utilisation=0.3"]).config
    assert (config.cluster.devices, config.cluster.utilisation, config.cluster.bf16) == (512, 0.3, 989.0)
    assert compose("plan", ["task=diffusion", "patches=2x2x2"]).config.patches.size == [2, 2, 2]
    for word in ("cluster=h900x8", "cluster=h100x", "cluster=h100x2x", "cluster=h100x-4"):
        with pytest.raises(ValueError, match="there is no cluster=h"):
            compose("plan", ["task=diffusion", word])


def test_the_share_of_the_peak_comes_from_a_log(tmp_path):
    rows = [
        {"mfu": 0.1, "data_share": 0.5},
        {"mfu": 0.3, "data_share": 0.25},
        {"mfu": 0.3, "data_share": 0.25},
        {"mfu": None, "data_share": 0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps({'step': step, **row})}\n" for step, row in enumerate(rows, 1)))
    assert fitted(tmp_path, 1.25) == pytest.approx(0.3 / 0.75 * 1.25)
    with pytest.raises(ValueError, match="fewer than two lines with mfu"):
        fitted(tmp_path / "none", 1.0)


@long
def test_every_average_that_is_kept_is_counted():
    """`ema=post_hoc` keeps two, each as large as the weights."""
    one, two = (bill(wanted("cluster=h100x1", "trainer=gpu", f"ema={name}")) for name in ("constant", "post_hoc"))
    assert two.memory.average == 2 * one.memory.average
    assert two.saved == one.saved + one.memory.average and two.memory.largest >= one.memory.largest + one.memory.average


@long
def test_gradients_of_copies_are_no_message_inside_layers():
    """With `trainer=cp` the ranks that share packs also average gradients, once a step, while they compute: it is told by itself."""
    same = wanted("cluster=h100x2", "trainer=cp", "trainer.context=2", "plan.packs=1")
    more = wanted("cluster=h100x2", "trainer=cp", "trainer.context=2", "plan.packs=4")
    one, four = bill(same), bill(more)
    assert one.sent["replicate x context"] == four.sent["replicate x context"] == 4 * one.numbers
    assert four.sent["context"] == pytest.approx(4 * one.sent["context"], rel=1e-3)  # what ranks agree on is sent once
    assert one.time.hidden == pytest.approx(4 * one.numbers / 450e9)


@long
def test_weights_in_shards_over_context_ranks_alone_are_no_message_inside_layers():
    """The same ranks gather weights, which computing hides, and exchange tokens, which it cannot; each is as where the other is not."""
    shared, copies, cut = (
        bill(wanted("cluster=h100x2", *words))
        for words in (
            ("trainer=fsdp", "trainer.shard=1", "trainer.context=2", "plan.packs=1"),
            ("trainer=cp", "trainer.context=2", "plan.packs=1"),
            ("trainer=fsdp", "plan.packs=2"),
        )
    )
    assert set(shared.sent) == {"context", "shard x context"}
    assert shared.sent["context"] == pytest.approx(copies.sent["context"], rel=1e-3)
    assert shared.sent["shard x context"] == pytest.approx(cut.sent["shard"], rel=1e-3)
    assert shared.time.hidden == pytest.approx(shared.time.sending["shard x context"])


@pytest.mark.parametrize(
    ("steps", "every", "keep", "keep_every", "count"), [(20, 10, 2, 0, 2), (100, 10, 2, 30, 4), (95, 10, 3, 30, 5), (5, 10, 3, 0, 1)]
)
def test_checkpoints_that_stay_are_counted(steps, every, keep, keep_every, count):
    words = [
        "cluster=h100x1",
        f"steps={steps}",
        f"checkpoint.every={every}",
        f"checkpoint.keep={keep}",
        f"checkpoint.keep_every={keep_every}",
    ]
    assert wanted(*words).launch.checkpoints == count


def test_stages_that_the_price_is_not_of_are_told():
    stage = SimpleNamespace
    for stages, said in ((1, []), (3, ["first 5 steps, which are of stages 0 to 1 of 0 to 2"])):
        plan = stage(stages=[None] * stages, columns=lambda step: [stage(stage=0), stage(stage=1 if step == 4 else 0)])
        found = unseen_stages(stage(plan=plan), steps=5)  # pyright: ignore[reportArgumentType]
        assert len(found) == len(said) and all(words in each for words, each in zip(said, found, strict=True))


SMALL = ["dit.depth=1"]  # a second or so of a processor, so that `make test` has them


@pytest.fixture(scope="module")
def alone():
    return bill(wanted("cluster=h100x1", "trainer=gpu", *SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["auto", "ddp", "fsdp"])
def test_a_mesh_of_one_device_costs_what_no_mesh_does(alone, trainer):
    """It sends nothing and shares nothing: operations, memory of what it holds, time and money are the same."""
    one = bill(wanted("cluster=h100x1", f"trainer={trainer}", *SMALL))
    assert (one.flops, one.executed, one.numbers, one.saved, one.tokens) == (
        alone.flops,
        alone.executed,
        alone.numbers,
        alone.saved,
        alone.tokens,
    )
    for part in ("weights", "average", "moments", "gradients"):
        assert getattr(one.memory, part) == getattr(alone.memory, part), part
    assert not any(one.sent.values()) and one.time.whole == alone.time.whole and one.money == alone.money > 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_what_a_ring_of_copies_sends_is_known_in_closed_form(alone, count):
    """Each rank sends (n - 1) / n of its gradients twice, and holds and computes what one device does."""
    found = bill(wanted(f"cluster=h100x{count}", "trainer=ddp", f"plan.packs={count}", *SMALL))
    assert found.sent == {"replicate": 2 * 4 * alone.numbers * (count - 1) / count}
    assert found.memory.weights == 4 * alone.numbers == alone.memory.weights
    assert (found.flops, found.tokens, found.clips) == (count * alone.flops, count * alone.tokens, count * alone.clips)
    assert found.time.computing == alone.time.computing and found.device_hours == count * found.hours


@pytest.mark.slow
@pytest.mark.parametrize("words", [["cluster.price=0"], ["steps=1"], ["plan.packs=3"], ["cluster.memory=0.0001"], ["checkpoint.every=0"]])
def test_a_price_is_made_of_finite_numbers(alone, words):
    """No figure is divided by nothing: on one device, over one step, for no money, with packs that are more or less than the ranks."""
    for found in (alone, bill(wanted("cluster=h100x1", "trainer=gpu", *SMALL, *words, epoch=None))):
        assert all(value is None or math.isfinite(value) for value in found.figures.values()), found.figures
        assert not any(word in line for line in found.lines() for word in ("nan", "inf ")) and found.time.whole > 0
