"""The same clips at the same step for any ranks, workers and cuts, and every clip of the index trained on or named, once an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sora.data.index import latents
from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.loading.latents import LatentData
from sora.data.loading.loader import step_loader
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Bucketed, Packed
from sora.data.plan.plan import TokenPlan
from sora.patches import Patchifier
from sora.system.draws import sample_id
from sora.text import cache
from sora.text.byte import ByteEncoder

HASH = "89abcdef" * 8
TEXT = ByteEncoder(width=4, depth=1, reach=1, max_tokens=8)
CLIPS, STEPS, PACKS = 61, 9, 8
DRAW = np.random.default_rng(3)
SHAPES = [(int(time), int(side), 2 * int(side)) for time, side in zip(DRAW.integers(1, 5, CLIPS), DRAW.integers(1, 3, CLIPS), strict=True)]


def numbered(rows) -> list[torch.Tensor]:
    return [torch.full((2, *SHAPES[row]), row / CLIPS) for row in rows]


def written(folder: Path, shards: int) -> Path:
    """Clips whose latents are their number; the clips themselves are never read."""
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=1 << 30 if shards == 1 else 2600 * CLIPS // shards) as writer:
        for number, (frames, height, width) in enumerate(SHAPES):
            caption = (Caption("short", f"{number}", "test"),)
            writer.write(ClipFacts(f"clip-{number}", 4 * frames, 8.0, 8 * height, 8 * width, caption), b"no video " * (number + 1))
        writer.finish({})
    index = Index.open(folder)
    cache.extend(folder, TEXT, ["", *(str(number) for number in range(CLIPS))], shard=64)
    rows = latents.shard_rows(index)
    for number, mine in enumerate(rows):
        latents.write_shard(index, mine, numbered, number=number, vae_hash=HASH, settings={})
    latents.finish(index, shards=len(rows), vae_hash=HASH, about={"stride": [4, 8, 8], "channels": 2})
    return folder


@pytest.fixture(scope="module", params=[1, 5], ids=["one shard", "several shards"])
def folder(request, tmp_path_factory) -> Path:
    made = written(tmp_path_factory.mktemp("elastic") / "set", request.param)
    assert (len(list(made.glob("video-*.tar"))) > 1) == (request.param > 1)
    return made


def steps(folder: Path, *, filling=None, weights=None, folders=None, quarantine=None):
    data = LatentData(
        folders=folders or [str(folder)], split="train", weights=weights, captions=None, drop=0.3, first_frame=0.3, text_budget=None,
        max_bad_share=0.5, cache_mb=0, hash_every_read=False, vae_hash=HASH, text=TEXT, patchifier=Patchifier(size=(1, 1, 1)), seed=7,
    )  # fmt: skip
    plan = TokenPlan(
        data.clips, filling=filling or Packed(), cost=Cost(linear=1.0, quadratic=0.01), budget=40, max_clips=6, packs=PACKS, accumulate=2,
        window=2, frames=None, area=None, images=None, drop_long=False, curriculum=(), weights=data.weights, width=None, seed=7,
    )  # fmt: skip
    return data.batches(plan, quarantine=quarantine)


def told(batch) -> tuple:
    """All that a pack is: its clips, their draws, and every number of it."""
    numbers = (batch.tokens.patches, batch.tokens.positions, batch.text.states, batch.conditions)
    return batch.sample_ids, batch.epochs, tuple(value.numpy().tobytes() for value in numbers)


@pytest.fixture(scope="module")
def whole(folder) -> list[list[tuple]]:
    made = steps(folder)
    return [[told(batch) for batch in made[step]] for step in range(STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_any_ranks_that_go_on_anywhere_train_on_the_same(folder, whole, ranks, cut):
    shares = [step_loader(steps(folder), first=cut, last=STEPS, workers=0, ranks=ranks, rank=rank) for rank in range(ranks)]
    for step, dealt in enumerate(zip(*shares, strict=True), start=cut):
        turns = [[told(batch) for batch in share] for share in dealt]
        assert [turns[place % ranks][place // ranks] for place in range(PACKS)] == whole[step]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers", "cut"), [(1, 1, 3), (1, 4, 0), (2, 2, 2), (2, 3, 5), (4, 1, 6)])
def test_any_workers_load_the_same(folder, whole, ranks, workers, cut):
    for rank in range(ranks):
        loader = step_loader(steps(folder), first=cut, last=STEPS, workers=workers, ranks=ranks, rank=rank)
        for step, share in enumerate(loader, start=cut):
            assert [told(batch) for batch in share] == whole[step][rank::ranks]


@pytest.mark.slow
def test_a_loader_that_is_killed_leaves_nothing_behind(folder, whole):
    """Workers that die in the middle of a step, and whoever comes after them on another number of ranks."""
    dying = iter(step_loader(steps(folder), first=0, last=STEPS, workers=2))
    assert [told(batch) for batch in next(dying)] == whole[0]
    for worker in dying._workers:
        worker.kill()
    with pytest.raises((RuntimeError, OSError)):  # torch tells of the worker, or of the socket through which it gave a tensor
        list(dying)
    for rank in range(2):
        for step, share in enumerate(step_loader(steps(folder), first=1, last=STEPS, workers=1, ranks=2, rank=rank), start=1):
            assert [told(batch) for batch in share] == whole[step][rank::2]


# Every two of a number of ranks, of bad clips and a filling meet in these; all three in `make test-long`.
QUICK = [(1, 0, Packed()), (1, 4, Bucketed()), (2, 4, Packed()), (8, 4, Bucketed()), (8, 0, Packed()), (2, 0, Bucketed())]
OTHERS = [(1, 0, Bucketed()), (1, 4, Packed()), (2, 4, Bucketed()), (8, 4, Packed()), (8, 0, Bucketed()), (2, 0, Packed())]


@pytest.mark.parametrize(
    ("ranks", "bad", "filling"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS)],
    ids=lambda one: one if isinstance(one, int) else type(one).__name__,
)
def test_trained_and_quarantined_are_the_index_exactly(tmp_path, folder, ranks, bad, filling):
    """Every clip of an epoch is trained on once or named once; who stands in for a bad one has been trained on twice."""
    import shutil

    spoilt = tmp_path / "set"
    shutil.copytree(folder, spoilt)
    index = latents.LatentIndex(Index.open(spoilt), HASH)
    names = set()
    for number in DRAW.choice(CLIPS, bad, replace=False).tolist():
        member = index.member(number)
        names.add(member.key)
        with open(spoilt / member.shard, "r+b") as file:
            file.seek(member.offset + member.size - 1)
            file.write(b"\xff")
    path = tmp_path / "quarantine.jsonl"
    seen, step = Counter(), 0
    made = [steps(spoilt, filling=filling, quarantine=path) for _ in range(ranks)]
    while made[0].plan.epoch_of(step) == 0:
        for rank, mine in enumerate(made):
            for batch in mine.share(step, ranks=ranks, rank=rank):
                seen.update(sample for sample, epoch in zip(batch.sample_ids, batch.epochs, strict=True) if epoch == 0)
        step += 1
    quarantined = made[0].quarantine.keys()
    assert quarantined == names
    assert len(path.read_text().splitlines() if bad else []) == bad
    assert set(seen) | {sample_id(key) for key in quarantined} == {sample_id(f"clip-{number}") for number in range(CLIPS)}
    assert not set(seen) & {sample_id(key) for key in quarantined}
    assert sum(seen.values()) == CLIPS
    assert bad or set(seen.values()) == {1}


def test_stand_ins_are_the_same_whoever_meets_the_bad_clip(tmp_path, folder):
    """A run that has met bad clips and one that comes new to them train on the same."""
    import shutil

    spoilt = tmp_path / "set"
    shutil.copytree(folder, spoilt)
    index = latents.LatentIndex(Index.open(spoilt), HASH)
    for number in (3, 17):
        member = index.member(number)
        with open(spoilt / member.shard, "r+b") as file:
            file.seek(member.offset + member.size - 1)
            file.write(b"\xff")
    walked = steps(spoilt, quarantine=tmp_path / "a.jsonl")
    everything = [[told(batch) for batch in walked[step]] for step in range(STEPS)]
    for step in (STEPS - 1, 2):
        assert [told(batch) for batch in steps(spoilt, quarantine=tmp_path / "b.jsonl")[step]] == everything[step]


def test_datasets_with_equal_keys_are_two(tmp_path):
    one, two = written(tmp_path / "one", 1), written(tmp_path / "two", 1)
    made = steps(one, folders=[str(one), str(two)], weights=[3, 1])
    counts = Counter(made.plan.clips.key(item.row) if item.row < CLIPS else "two" for step in range(8) for item in made.plan.at(step).items)
    assert abs(counts["two"] / sum(counts.values()) - 0.25) < 0.05
