import gc
import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from sora.data.index.index import Index
from sora.data.loading import loader as loading
from sora.data.loading import quarantine
from sora.data.loading.loader import FrameBatches, FrameData, read_clip, step_loader
from sora.data.loading.quarantine import Quarantine, owner
from sora.data.plan.crops import CropPlan
from sora.system.draws import sample_id
from sora.video.files import PYAV
from tests.data.making import dataset, flip, joined

SHAPES = [(9, 16, 24)] * 6 + [(1, 24, 16)] * 3 + [(5, 16, 16)] * 2


@pytest.fixture
def clips(tmp_path):
    return dataset(tmp_path / "set", SHAPES, fps=12.0)


def batches(folder, *, share=0.0, quarantine=None, cache_mb=0.0, **more):
    data = FrameData(folders=[str(folder / "set")], split="train", weights=None, max_bad_share=share, cache_mb=cache_mb, reader=PYAV)
    settings = {"shapes": [[5, 12, 12], [1, 16, 16]], "batch": 4, "packs": 2, "seed": 0}
    plan = CropPlan(data.indexes, weights=data.weights, **(settings | more))
    return data.batches(plan, quarantine=quarantine)


def told(batch) -> tuple:
    """All that a batch is."""
    return batch.frames.shape, batch.frames.numpy().tobytes(), batch.fps.tolist(), batch.sample_ids, batch.epochs, batch.keys


def spoil(folder, *numbers):
    index = Index.open(folder / "set")
    for number in numbers:
        row = index.row(number)
        flip(folder / "set" / row.shard, row.offset + row.size // 2)


@pytest.mark.parametrize("cache_mb", [0, 0.02, 64])
def test_a_batch_holds_the_planned_crops_pixel_for_pixel(tmp_path, clips, cache_mb):
    data = batches(tmp_path, cache_mb=cache_mb)
    for step in range(8):
        batch = joined(data[step])
        items = [item for pack in data.plan.at(step).packs for item in pack.items]
        for frames, fps, sample, epoch, key, item in zip(
            batch.frames, batch.fps, batch.sample_ids, batch.epochs, batch.keys, items, strict=True
        ):
            assert key == f"clip-{item.row:03d}"
            assert (sample, epoch, float(fps)) == (sample_id(key, item.window), item.epoch, 12.0)
            start, length, top, left, height, width = item.crop
            assert np.array_equal(frames, clips[key][start : start + length, top : top + height, left : left + width])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_restarts_change_nothing(tmp_path, clips, workers):
    alone = [joined(batches(tmp_path)[step]) for step in range(7)]
    for step, batch in zip(range(3, 7), step_loader(batches(tmp_path, cache_mb=8), first=3, last=7, workers=workers), strict=True):
        assert told(joined(batch)) == told(alone[step])


def test_ranks_together_train_on_the_step(tmp_path, clips):
    data = batches(tmp_path)
    loaders = [step_loader(data, first=0, last=4, workers=0, ranks=2, rank=rank) for rank in range(2)]
    for step, shares in enumerate(zip(*loaders, strict=True)):
        assert [told(pack) for share in shares for pack in share] == [told(pack) for pack in data[step]]  # a pack for each
        assert [len(share[0].keys) for share in shares] == [2, 2]


def test_loading_leaves_the_global_random_state_alone(tmp_path, clips):
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    list(step_loader(batches(tmp_path), first=0, last=3, workers=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_is_replaced_by_rule_and_named_once(tmp_path, clips, workers):
    good = [joined(batches(tmp_path)[step]) for step in range(12)]
    spoil(tmp_path, 2, 7)
    path = tmp_path / "quarantine.jsonl"
    loaded = list(map(joined, step_loader(batches(tmp_path, share=0.5, quarantine=path), first=0, last=12, workers=workers)))
    again = [joined(batches(tmp_path, share=0.5)[step]) for step in range(12)]
    for clean, batch, repeated in zip(good, loaded, again, strict=True):
        assert told(batch) == told(repeated)
        assert not {"clip-002", "clip-007"} & set(batch.keys)
        for place, key in enumerate(clean.keys):
            if key not in ("clip-002", "clip-007"):
                assert torch.equal(batch.frames[place], clean.frames[place])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(entry["key"] for entry in entries) == ["clip-002", "clip-007"]
    assert {entry["shard"] for entry in entries} == {"video-000000.tar"}
    assert all("have changed" in entry["reason"] for entry in entries)


def test_trained_and_quarantined_together_are_the_index(tmp_path, clips):
    spoil(tmp_path, 1)
    data = batches(tmp_path, share=0.5, shapes=[[1, 8, 8]], batch=1, packs=1)
    trained = {data[step][0].keys[0] for step in range(len(SHAPES))}
    assert trained | data.quarantine.keys() == set(clips)
    assert trained & data.quarantine.keys() == set()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_clips_stop_the_run(tmp_path, clips, workers):
    spoil(tmp_path, 0, 1, 2)
    loader = step_loader(batches(tmp_path, share=0.2, quarantine=tmp_path / "q.jsonl"), first=0, last=50, workers=workers)
    with pytest.raises(ValueError, match=r"3 of 11 clips cannot be read, more than data\.max_bad_share=0\.2"):
        list(loader)


def test_a_clip_that_is_not_what_the_index_says_is_refused(tmp_path, clips):
    index = Index.open(tmp_path / "set")
    index.heights = index.heights + 1
    with pytest.raises(ValueError, match="clip-000.* is 16x24, its index says 17x24"):
        read_clip(index, 0, reader=PYAV)
    index = Index.open(tmp_path / "set")
    index.frames = index.frames + 1
    with pytest.raises(ValueError, match="clip-000.*1 missing"):
        read_clip(index, 0, reader=PYAV)


LINES = ["3", "null", "[]", '"key"', "{}", '{"key": "b"}', '{"key": 3, "reason": "r"}', '{"key": "b", "reason": "r", "dataset": []}']
HELD = [
    '{"key": "", "reason": "r", "sample_id": 1}',
    '{"key": "", "reason": "r", "sample_id": [1], "from": 0}',
    "[" * 100_000,
    "NaN",
    "\x00",
]


@pytest.mark.parametrize("line", ['{"key": "b", "sha', *LINES, *HELD], ids=lambda line: line[:40])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_of_the_quarantine_that_is_torn_or_says_nothing_hides_no_clip(tmp_path, line, end):
    if line.startswith("[["):
        gc.collect()  # what other tests left must not end amid the depths of a line of 100,000 brackets, where nothing can be told
    path = tmp_path / "q.jsonl"
    Quarantine(path, clips=10, max_share=1).add("a", shard="s", reason="r")
    with open(path, "a") as file:
        file.write(line + end)
    again = Quarantine(path, clips=10, max_share=1)
    again.enter(5)
    again.add("a", shard="s", reason="r")
    again.add("c", shard="s", reason="r")
    again.hold({7: "d"}, step=0, reason="r")
    found = Quarantine(path, clips=10, max_share=1)
    assert found.keys() == {"a", "c"} and list(found._held) == [7]
    found.refuse("b", sample=1)


def test_clips_of_one_key_in_folders_of_one_name_are_told_apart(tmp_path):
    for place, size in (("a", 16), ("b", 24)):
        (tmp_path / place).mkdir()
        dataset(tmp_path / place / "set", [(5, size, 16)] * 2)
    one, two = Index.open(tmp_path / "a/set"), Index.open(tmp_path / "b/set")
    assert one.keys[0] == two.keys[0] and one.folder.name == two.folder.name
    for path in (tmp_path / "q.jsonl", None):
        found = Quarantine(path, clips=4, max_share=0.5)
        found.add(one.keys[0], shard="s", reason="torn", **owner(one))
        found.refuse(two.keys[0], **owner(two))
        with pytest.raises(ValueError, match="^torn$"):
            found.refuse(one.keys[0], **owner(one))
        found.add(two.keys[0], shard="s", reason="cut", **owner(two))
        with pytest.raises(ValueError, match="^cut$"):
            found.refuse(two.keys[0], **owner(two))
    listed = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(line["dataset"], line["fingerprint"]) for line in listed] == [("set", index.dataset_fingerprint) for index in (one, two)]


def test_lines_that_name_a_dataset_by_its_folder_alone_still_hold(tmp_path):
    dataset(tmp_path / "set", [(5, 16, 16)] * 2)
    index = Index.open(tmp_path / "set")
    (tmp_path / "q.jsonl").write_text(json.dumps({"key": index.keys[0], "dataset": "set", "shard": "s", "reason": "old"}) + "\n")
    found = Quarantine(tmp_path / "q.jsonl", clips=2, max_share=0.5)
    found.enter(0)
    found.add(index.keys[0], shard="s", reason="again", **owner(index))
    with pytest.raises(ValueError, match="^old$"):
        found.refuse(index.keys[0], **owner(index))
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1


class Slow:
    """Tells the worker's process, then takes a moment."""

    def __getitem__(self, step):
        time.sleep(0.3)
        return os.getpid(), torch.get_num_threads()

    def share(self, step, *, ranks, rank):
        return self[step]


def test_workers_outlive_the_signals_that_the_main_process_answers():
    loader = iter(step_loader(Slow(), first=0, last=3, workers=1))
    worker, threads = next(loader)
    assert (worker != os.getpid(), threads) == (True, 1)
    for sent in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(worker, sent)
    assert [step[0] for step in loader] == [worker, worker]


def test_a_dataset_that_is_missing_is_told_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"sora prepare"):
        FrameData(folders=[str(tmp_path)], split="train", weights=None, max_bad_share=0, cache_mb=0, reader=PYAV)
    with pytest.raises(ValueError, match=r"data\.folders"):
        FrameData(folders=(), split="train", weights=None, max_bad_share=0, cache_mb=0, reader=PYAV)


def test_frame_batches_take_any_number_of_indexes(tmp_path):
    one = dataset(tmp_path / "one", [(5, 16, 16)] * 3, prefix="one")
    two = dataset(tmp_path / "two", [(5, 24, 24)] * 5, prefix="two")
    indexes = [Index.open(tmp_path / name) for name in ("one", "two")]
    plan = CropPlan(indexes, shapes=[[5, 16, 16]], batch=4, packs=1, weights=[1, 3], seed=0)
    data = FrameBatches(indexes, plan, quarantine=Quarantine(None, clips=8, max_share=0), cache_mb=0, reader=PYAV)
    for step in range(5):
        assert sum(key in one for key in data[step][0].keys) == 1
        assert sum(key in two for key in data[step][0].keys) == 3


def test_a_clip_that_is_known_to_be_bad_is_not_tried_again(tmp_path, clips, monkeypatch):
    spoil(tmp_path, 2)
    data, tried = batches(tmp_path, share=0.2, quarantine=tmp_path / "q.jsonl"), []
    plain = loading.read_clip
    monkeypatch.setattr(loading, "read_clip", lambda index, row, **more: tried.append(int(row)) or plain(index, row, **more))
    whole = [told(joined(data[step])) for step in range(16)]
    assert tried.count(2) == 1 < sum(item.row == 2 for step in range(16) for item in data.plan.at(step).items)
    assert whole == [told(joined(data[step])) for step in range(16)]


def test_a_held_sample_is_left_out_from_its_step_on_by_every_process_and_never_before(tmp_path, clips, monkeypatch):
    """What a step holds does not depend on when a process learned of it: only on the step."""
    monkeypatch.setattr(quarantine, "LEAD", 20)
    listed = tmp_path / "q.jsonl"
    plain = batches(tmp_path, share=0.5, cache_mb=64)
    worker, trainer = (batches(tmp_path, share=0.5, cache_mb=64, quarantine=listed) for _ in range(2))
    planned = [joined(plain[step]).sample_ids for step in range(45)]
    victim, key = planned[3][0], plain[3][0].keys[0]
    assert joined(worker[3]).sample_ids == planned[3] and plain.keys(3)[victim] == key
    trainer.quarantine.hold({victim: key, 77: ""}, step=3, reason="its loss was not finite at step 4")
    trainer.quarantine.hold({victim: key}, step=9, reason="again")  # the first time counts
    assert [json.loads(line)["from"] for line in listed.read_text().splitlines()] == [23, 23]
    held = {step for step, ids in enumerate(planned) if victim in ids and step >= 23}
    assert held
    for order in (range(45), reversed(range(45))):
        for step in order:
            found = joined(worker[step]).sample_ids
            assert [a != b for a, b in zip(found, planned[step], strict=True)] == [step in held and b == victim for b in planned[step]]
    assert worker.quarantine.keys() == set()  # it can be read


def test_held_samples_count_as_bad_ones(tmp_path):
    one = Quarantine(tmp_path / "q.jsonl", clips=10, max_share=0.2)
    one.add("a", shard="s", reason="torn")
    one.hold({5: "b"}, step=1, reason="its loss was not finite")
    with pytest.raises(
        ValueError, match=r"3 of 10 clips cannot be read or learned from, more than data\.max_bad_share=0\.2 allows; the last: c"
    ):
        one.hold({6: "c"}, step=2, reason="its loss was not finite")


def test_of_however_few_clips_one_bad_one_stops_nothing_unless_none_may_be():
    few = Quarantine(None, clips=5, max_share=0.01)
    few.add("a", shard="s", reason="cut")
    with pytest.raises(ValueError, match="2 of 5 clips cannot be read"):
        few.add("b", shard="s", reason="cut")
    with pytest.raises(ValueError, match="1 of 5 clips cannot be read"):
        Quarantine(None, clips=5, max_share=0).add("a", shard="s", reason="cut")


def test_a_dataset_is_listed_once_however_its_path_is_spelt(tmp_path):
    """Two of one folder would show its clips twice as often as those of others, and say nothing of it."""
    dataset(tmp_path / "a", [(5, 16, 16)])
    dataset(tmp_path / "b", [(5, 16, 16)])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    rest = {"split": "train", "weights": None, "max_bad_share": 0.1, "cache_mb": 0, "reader": PYAV}
    for twice in ("a", "link", "b/../a"):
        with pytest.raises(ValueError, match=r"data\.folders: .* is the dataset .*/a again.* data\.weights"):
            FrameData(folders=[str(tmp_path / name) for name in ("a", "b", twice)], **rest)
    assert len(FrameData(folders=[str(tmp_path / name) for name in ("a", "b")], **rest).indexes) == 2
