"""All ranks go on from one whole checkpoint, and judge and suspect alike, whatever each of them sees."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from sora.runs import agreement as choosing
from sora.runs import checkpoint
from sora.runs.agreement import Elsewhere, agreed
from sora.runs.jsonl import read
from sora.runs.run import create
from sora.training import state
from tests.data.making import flip
from tests.runs.test_shards import parts
from tests.training.groups import in_ranks
from tests.training.stand_ins import Steps, fit
from tests.training.test_parity import Shares, launched, modes

CPU = torch.device("cpu")


def saved(folder: Path, *steps: int, ranks: int = 3) -> None:
    """Checkpoints that several ranks wrote."""
    for step in steps:
        made = parts(folder, step, ranks)
        for part in made:
            part.write()
        made[0].commit(keep=9, keep_every=0)


def test_sizes_are_looked_up_and_bytes_read_once_between_the_ranks_and_all_take_the_same(tmp_path, monkeypatch):
    saved(tmp_path / "all", 2, 4)
    plain, look = choosing.checkpoint.check, os.stat

    def work(rank: int) -> None:
        looked, asked = [], []
        monkeypatch.setattr(choosing.checkpoint, "check", lambda path, names: (looked.extend(names), plain(path, names)))
        monkeypatch.setattr(os, "stat", lambda path, **how: (asked.append(Path(str(path)).name), look(path, **how))[1])
        assert agreed(tmp_path / "all", device=CPU) == 4
        assert agreed(tmp_path / "all", device=CPU, only=lambda step: step < 4) == 2
        (tmp_path / f"looked-{rank}").write_text(json.dumps([looked, asked]))

    in_ranks(3, tmp_path, work)
    names = [json.loads((tmp_path / f"looked-{rank}").read_text()) for rank in range(3)]
    files = {path.name for path in (tmp_path / "all" / "step-00000004").iterdir()} - {checkpoint.MANIFEST}
    assert all(looked for looked, _ in names)
    for kind in range(2):
        assert sorted(name for each in names for name in each[kind] if name in files) == sorted([*files, *files])


def test_a_file_that_is_cut_short_is_found_by_whoever_looks_at_it(tmp_path):
    saved(tmp_path / "all", 2, 4)
    for path in sorted((tmp_path / "all" / "step-00000004").glob("*.safetensors")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        found = [choosing.damage(path.parent, rank=rank, count=3) for rank in range(3)]
        assert [problem for problem in found if problem] == [
            f"{path} is damaged: {len(whole) - 1} bytes instead of {len(whole)}; use another checkpoint"
        ]
        path.rename(path.with_name("gone"))  # it is missing, and a stranger is there: each rank sees the list
        assert all(choosing.damage(path.parent, rank=rank, count=3) for rank in range(3))
        path.with_name("gone").unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("spoiled", ["model-00001-of-00003.safetensors", "state.json", "manifest.json"])
def test_a_newest_one_that_is_damaged_for_one_rank_is_passed_over_by_all_and_told(tmp_path, capfd, spoiled):
    saved(tmp_path / "all", 2, 4)
    flip(tmp_path / "all" / "step-00000004" / spoiled, 30)

    def work(rank: int) -> None:
        assert agreed(tmp_path / "all", device=CPU) == 2

    in_ranks(3, tmp_path, work)
    told = [line for line in capfd.readouterr().out.splitlines() if "passed over a damaged checkpoint (rank" in line]
    assert told and all(f"step-00000004/{spoiled}" in line for line in told)


def test_ranks_that_see_other_folders_take_what_all_see_and_none_where_nothing_is_whole(tmp_path):
    saved(tmp_path / "0", 2, 4, 6)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "step-00000006")  # a shared disk that is behind on one node
    (tmp_path / "0" / "step-00000004" / "state.json").unlink()

    def work(rank: int) -> None:
        assert agreed(tmp_path / str(rank), device=CPU) == 2
        assert agreed(tmp_path / str(rank), device=CPU, only=lambda step: step > 2) is None
        assert agreed(tmp_path / "nowhere", device=CPU) is None

    in_ranks(2, tmp_path, work)


def test_one_process_falls_back_too_and_never_to_nothing(tmp_path):
    fit(tmp_path / "run", until=9, total=24, every=3)
    found = checkpoint.folder_of(tmp_path / "run" / "checkpoints", 9)
    resumed = checkpoint.load(found)
    flip(found / "model.safetensors", 400)
    with pytest.raises(Elsewhere, match="step 6"):
        fit(tmp_path / "run", until=12, total=24, resumed=resumed)
    for step in (3, 6):
        flip(checkpoint.folder_of(tmp_path / "run" / "checkpoints", step) / "optimizer.safetensors", 400)
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        fit(tmp_path / "run", until=12, total=24, resumed=resumed)


class Poisoned(Shares):
    """Packs of which the last, so the last rank's, holds a bad sample at some steps."""

    def __init__(self, *, rank: int, ranks: int, poison: dict[int, float]) -> None:
        super().__init__(rank=rank, ranks=ranks)
        self.steps = Steps(packs=4, poison=poison)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_what_is_wrong_on_one_rank_is_left_out_by_all_named_once_and_gone_back_from_together(tmp_path, mode):
    """Step 6 has one bad sample on the second rank; steps 10 to 12 are not sound either, and both go back to step 8 and on from 12."""
    nan, folder = float("nan"), tmp_path / "run"
    poison = {5: nan, **dict.fromkeys(range(9, 12), nan)}
    create(folder, config="seed: 0\n", info={"kind": "vae"})

    def work(rank: int) -> None:
        launched(rank, 2)
        held = []
        module = fit(
            folder,
            until=14,
            total=14,
            every=4,
            keep=9,
            patience=3,
            max_rollbacks=1,
            dataset=Poisoned(rank=rank, ranks=2, poison=poison),
            trainer=partial(modes(2)[mode]),
            hold=lambda step, ids, reason: held.append((step, list(ids))),
        )
        assert (module.counters.step, module.counters.returns, module.counters.returned_to) == (14, 1, 8)
        last = Steps(packs=4)[5][-1].sample_ids[-1]
        assert held == ([(5, [last])] if rank == 0 else [])

    in_ranks(2, tmp_path, work)
    events = read(folder / "events.jsonl")
    assert [(row["event"], row["step"]) for row in events] == [
        ("skipped", 6),
        ("skipped", 10),
        ("skipped", 11),
        ("skipped", 12),
        ("went back", 12),
    ]
    assert events[0]["sample_ids"] == [Steps(packs=4)[5][-1].sample_ids[-1]]
    then, after = (checkpoint.load(checkpoint.folder_of(folder / "checkpoints", step)) for step in (8, 12))
    for kind in ("model", "ema", "optimizer"):
        assert all(torch.equal(value, after.tensors[kind][name]) for name, value in then.tensors[kind].items()), kind


def test_a_checkpoint_of_another_model_is_refused_before_it_is_read(tmp_path):
    fit(tmp_path / "run", until=3, total=24, every=3)
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    from tests.training.stand_ins import ToyTask

    assert found is not None
    with pytest.raises(ValueError, match=r"model\.safetensors is of another model: network\.enter\.weight is \(8, 6\)"):
        state.refuse_other(ToyTask(9), checkpoint.load(found, verified=True), source=found)
