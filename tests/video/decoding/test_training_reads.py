"""What training makes of clips that crash, hang or eat the decoder: a line in the quarantine each, and the same batches otherwise."""

import json

import pytest
import torch

from sora.data.loading.loader import FrameData, read_clip, step_loader
from sora.data.plan.crops import CropPlan
from sora.video.decoding.guarded import GuardedReader
from sora.video.files import PYAV
from tests.data.making import dataset, joined
from tests.video.decoding.misbehaving import Hostile

HOSTILE = ["segv:clip-001", "hang:clip-004", "exit:clip-006", "eat:clip-009"]
BAD = {said.partition(":")[2] for said in HOSTILE}


def steps(folder, reader, *, quarantine=None, workers=0):
    data = FrameData(folders=[str(folder / "set")], split="train", weights=None, max_bad_share=0.5, cache_mb=0, reader=reader)
    plan = CropPlan(data.indexes, weights=data.weights, shapes=[[5, 16, 16]], batch=4, packs=1, seed=0)
    return list(map(joined, step_loader(data.batches(plan, quarantine=quarantine), first=0, last=8, workers=workers)))


@pytest.mark.slow
def test_the_reader_of_the_configuration_decodes_the_clips(tmp_path):
    clips = dataset(tmp_path / "set", [(5, 16, 24)] * 12)
    reader = GuardedReader(reader=PYAV, seconds=60, memory_gb=1, restart_after=5)
    for alone, guarded in zip(steps(tmp_path, PYAV), steps(tmp_path, reader), strict=True):
        assert torch.equal(alone.frames, guarded.frames)
        assert alone.keys == guarded.keys
    from sora.data.index.index import Index

    assert (read_clip(Index.open(tmp_path / "set"), 3, reader=reader) == clips["clip-003"]).all()
    reader.close()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_no_clip_ends_the_run_and_every_bad_one_is_named_once(tmp_path, workers):
    dataset(tmp_path / "set", [(5, 16, 24)] * 12)
    reader = GuardedReader(reader=Hostile(keys=HOSTILE), seconds=3, memory_gb=0.5, restart_after=100)
    clean = steps(tmp_path, PYAV)
    got = steps(tmp_path, reader, quarantine=tmp_path / "q.jsonl", workers=workers)
    assert {entry["key"] for entry in map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())} == BAD
    reasons = {entry["key"]: entry["reason"] for entry in map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())}
    for key, why in (("clip-001", "SIGSEGV"), ("clip-004", "took over 3 seconds"), ("clip-006", "exit code 137"), ("clip-009", "memory")):
        assert why in reasons[key]
    for whole, batch in zip(clean, got, strict=True):
        assert not BAD & set(batch.keys)
        for place, key in enumerate(whole.keys):
            if key not in BAD:
                assert batch.keys[place] == key
                assert torch.equal(batch.frames[place], whole.frames[place])
    reader.close()
