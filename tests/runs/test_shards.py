"""Checkpoints of several ranks: each writes what it holds, any number of ranks reads it back, and a missing part is no checkpoint."""

from __future__ import annotations

import json
import signal
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from sora.runs import checkpoint, manifest
from sora.runs.checkpoint import Saving, TrainingState
from sora.runs.shards import Stored, TensorShard, owned
from sora.system import files as storage
from sora.training import state
from tests.faults import Countdown, die, in_child, injected
from tests.runs.test_checkpoint import same, state_of
from tests.training.groups import in_ranks

pytestmark = pytest.mark.slow

SHAPES = {"odd": (7, 5), "thin": (3, 2), "cube": (4, 6, 5), "line": (11,), "scalar": (), "empty": (0, 3), "wide": (2, 33)}


def originals() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    return {**found, "half": torch.randn(9, 4, generator=draw).bfloat16(), "count": torch.arange(10)}


def laid_out(tensors: dict[str, Tensor], shape: tuple[int, ...], placements: tuple) -> dict[str, Tensor]:
    """Tensors sharded over a mesh as far as they have dimensions; scalars and counts stay plain."""
    names = ("replicate", "shard", "tensor")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)

    def fitting(value: Tensor) -> tuple:
        return tuple(Replicate() if isinstance(p, Shard) and p.dim >= value.ndim else p for p in placements)

    return {name: distribute_tensor(value, mesh, fitting(value)) if value.ndim else value for name, value in tensors.items()}


LAYOUTS = {
    "fsdp": ((4,), (Shard(0),)),
    "columns": ((4,), (Shard(1),)),
    "hsdp": ((2, 2), (Replicate(), Shard(0))),
    "hsdp of columns": ((2, 2), (Replicate(), Shard(1))),
    "fsdp and tensor": ((2, 2), (Shard(0), Shard(1))),
    "twice on rows": ((2, 2), (Shard(0), Shard(0))),
    "ddp": ((4,), (Replicate(),)),
}


def save(folder: Path, tensors: dict[str, Tensor], step: int, rank: int) -> None:
    saving = Saving(folder, TrainingState(step=step, samples=1, tokens=2, tensors={"model": tensors}), rank=rank, ranks=4, copied=True)
    saving.write()
    dist.barrier()
    if rank == 0:
        saving.commit(keep=99, keep_every=0)


def test_every_layout_comes_back_whole_in_one_process_and_every_number_is_written_once(tmp_path):
    def work(rank: int) -> None:
        for step, (shape, placements) in enumerate(LAYOUTS.values()):
            save(tmp_path, laid_out(originals(), shape, placements), step, rank)
        plain = originals()
        save(tmp_path, plain, len(LAYOUTS), rank)

    in_ranks(4, tmp_path, work)
    total = sum(value.numel() * value.element_size() for value in originals().values())
    for step in range(len(LAYOUTS) + 1):
        path = checkpoint.folder_of(tmp_path, step)
        loaded = checkpoint.load(path).tensors["model"]
        assert loaded.keys() == originals().keys()
        for name, value in originals().items():
            assert loaded[name].dtype == value.dtype
            assert torch.equal(loaded[name], value), (step, name)
        written = [load_file(file) for file in path.glob("model-*.safetensors")]
        assert sum(value.numel() * value.element_size() for file in written for value in file.values()) == total
        sizes = [sum(value.numel() * value.element_size() for value in file.values()) for file in written]
        assert len(written) == 4, step
        if step in (0, len(LAYOUTS)):
            assert max(sizes) < 0.5 * total  # shared out, not the first rank's alone


def test_a_checkpoint_of_four_ranks_is_read_box_by_box_on_two_with_another_layout(tmp_path):
    def writing(rank: int) -> None:
        save(tmp_path, laid_out(originals(), (2, 2), (Shard(1), Shard(0))), 1, rank)

    def reading(rank: int) -> None:
        saved = checkpoint.load(checkpoint.folder_of(tmp_path, 1)).tensors["model"]
        for shape, placements in (((2,), (Shard(0),)), ((2,), (Shard(1),)), ((1, 2), (Replicate(), Shard(0)))):
            target = laid_out({name: torch.zeros_like(value) for name, value in originals().items()}, shape, placements)
            state._fill(target, saved, source=tmp_path)
            for name, value in target.items():
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                assert torch.equal(whole, originals()[name]), name

    in_ranks(4, tmp_path, writing)
    in_ranks(2, tmp_path, reading)


def test_a_sharded_network_writes_its_own_boxes(tmp_path):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False), nn.LayerNorm(3))

    def work(rank: int) -> None:
        made = network()
        fully_shard(made, mesh=init_device_mesh("cpu", (4,)))
        save(tmp_path, dict(made.state_dict()), 1, rank)

    in_ranks(4, tmp_path, work)
    loaded = checkpoint.load(checkpoint.folder_of(tmp_path, 1)).tensors["model"]
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in network().state_dict().items()
    }


def parts(folder: Path, step: int, ranks: int) -> list[Saving]:
    return [Saving(folder, state_of(step), rank=rank, ranks=ranks) for rank in range(ranks)]


def test_a_rank_that_dies_anywhere_leaves_no_checkpoint_and_older_ones_as_they_were(tmp_path):
    checkpoint.save(tmp_path, state_of(1), keep=9)
    (tmp_path / "count").mkdir()
    with injected(Countdown(0, die)) as countdown:
        parts(tmp_path / "count", 2, 3)[1].write()
    assert countdown.seen > 10
    for at in range(1, countdown.seen + 1):
        first, second, third = parts(tmp_path, 2, 3)

        def work(second: Saving = second, at: int = at) -> None:
            with injected(Countdown(at, die)):
                second.write()

        assert in_child(work) == -signal.SIGKILL
        first.write()
        third.write()
        assert checkpoint.newest(tmp_path) == checkpoint.folder_of(tmp_path, 1)
        checkpoint.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir() if path.name != "count"] == ["step-00000001"]


def test_a_kill_while_the_first_rank_commits_leaves_all_or_nothing(tmp_path):
    def staged(folder: Path) -> Saving:
        made = parts(folder, 2, 3)
        for part in made:
            part.write()
        return made[0]

    checkpoint.save(tmp_path, state_of(1), keep=9)
    counted = staged(tmp_path / "count")
    with injected(Countdown(0, die)) as countdown:
        counted.commit(keep=9, keep_every=0)
    outcomes = set()
    for at in range(1, countdown.seen + 1):
        first = staged(tmp_path)

        def work(first: Saving = first, at: int = at) -> None:
            with injected(Countdown(at, die)):
                first.commit(keep=9, keep_every=0)

        assert in_child(work) == -signal.SIGKILL
        newest = checkpoint.newest(tmp_path)
        outcomes.add(checkpoint.step_of(newest))
        assert same(checkpoint.load(newest), state_of(checkpoint.step_of(newest)))
        checkpoint.sweep(tmp_path)
        if newest == checkpoint.folder_of(tmp_path, 2):
            newest.rename(tmp_path / f"gone-{at}")
    assert outcomes == {1, 2}


def test_training_may_go_on_while_a_copy_is_written(tmp_path):
    moving = state_of(5)
    saving = Saving(tmp_path, moving, rank=0, ranks=1, copied=True)
    for found in moving.tensors.values():
        for value in found.values():
            value.zero_()
    moving.facts["suspects"][0][0] = 9
    saving.write()
    assert same(checkpoint.load(saving.commit(keep=1, keep_every=0)), state_of(5))


def test_a_flipped_bit_in_any_ranks_file_is_refused_by_name(tmp_path):
    made = parts(tmp_path, 4, 3)
    for part in made:
        part.write()
    path = made[0].commit(keep=1, keep_every=0)
    assert same(checkpoint.load(path), state_of(4))
    files = sorted(file for file in path.iterdir() if file.name.startswith(("model", "rng", "manifest")))
    assert len(files) > 3
    for file in files:
        whole = file.read_bytes()
        for position in range(0, len(whole), 7):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            with pytest.raises(ValueError, match=file.name):
                checkpoint.load(path)
        file.write_bytes(whole)


def test_a_piece_that_is_missing_from_the_manifest_is_told(tmp_path):
    def work(rank: int) -> None:
        save(tmp_path, laid_out(originals(), (4,), (Shard(0),)), 1, rank)

    in_ranks(4, tmp_path, work)
    path = checkpoint.folder_of(tmp_path, 1)
    found, name = manifest.contents(path), "model-00002-of-00004.safetensors"
    files = {file: facts for file, facts in found.files.items() if file != name}
    (path / name).unlink()
    (path / "manifest.json").write_text(manifest.text_of(found._replace(files=files)))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: what it says of model makes no sense \(KeyError\(2\)\)"):
        checkpoint.load(path)
    layouts = [{**each, "pieces": [one for one in each["pieces"] if one[0] != 2]} for each in found.tensors["model"]["layouts"]]
    less = {"model": {**found.tensors["model"], "layouts": layouts}}
    (path / "manifest.json").write_text(manifest.text_of(found._replace(files=files, tensors=less)))
    with pytest.raises(ValueError, match="the pieces of"):
        checkpoint.load(path)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    path = checkpoint.save(tmp_path / "run", state_of(1), keep=1)
    (tmp_path / "secret").write_text("x")
    found = manifest.contents(path)
    facts = {"bytes": 1, "sha256": storage.text_hash("x")}
    (path / "manifest.json").write_text(manifest.text_of(found._replace(files={**found.files, "../../secret": facts})))
    said = r"manifest.json is damaged: files has the key '\.\./\.\./secret', and the name of a file in its folder fits"
    with pytest.raises(ValueError, match=said):
        checkpoint.load(path)


def test_tensors_that_are_cut_alike_share_a_layout_and_files_that_are_not_asked_for_stay_shut(tmp_path):
    tensors = {f"block{number}.{name}": value for number in range(9) for name, value in originals().items()}

    def writing(rank: int) -> None:
        save(tmp_path, laid_out(tensors, (4,), (Shard(0),)), 1, rank)

    in_ranks(4, tmp_path, writing)
    path = checkpoint.folder_of(tmp_path, 1)
    of_model = manifest.contents(path).tensors["model"]
    sharded = [each for each in of_model["layouts"] if len(each["pieces"]) > 1]
    assert len(of_model["names"]) == len(tensors) and len(sharded) == len(originals()) - 1  # the scalar
    for rank in (0, 1, 3):
        (path / f"model-{rank:05d}-of-00004.safetensors").write_bytes(b"no safetensors")
    stored = Stored(path, manifest.layouts(path, manifest.contents(path), "model"))
    assert "block3.odd" in stored and stored.keys() == tensors.keys()
    assert torch.equal(stored.part("block3.odd", (4, 0), (2, 5)), tensors["block3.odd"][4:6])  # seven rows: two for each of three ranks
    with pytest.raises(ValueError, match="model-00001-of-00004.safetensors is damaged"):
        stored.part("block3.odd", (3, 0), (2, 5))


def test_checkpoints_of_the_format_before_are_read(tmp_path):
    """Its manifest named every piece of every tensor that lies in several files; what lies in one, the files say."""

    def writing(rank: int) -> None:
        save(tmp_path, laid_out(originals(), (2, 2), (Shard(1), Shard(0))), 1, rank)

    in_ranks(4, tmp_path, writing)
    path = checkpoint.folder_of(tmp_path, 1)
    boxes = {}
    for name, layout in manifest.layouts(path, manifest.contents(path), "model").items():
        if len(layout.pieces) > 1:
            boxes[name] = {"shape": list(layout.shape), "offsets": {piece.file: list(piece.offset) for piece in layout.pieces}}
    old = manifest.contents(path)._replace(tensors={}, boxes={"model": boxes})
    (path / "manifest.json").write_text(manifest.text_of(old))
    assert json.loads((path / "manifest.json").read_text())["format"] == 2 and len(boxes) >= 5
    loaded = checkpoint.load(path).tensors["model"]
    assert loaded.keys() == originals().keys()
    assert all(torch.equal(loaded[name], value) for name, value in originals().items())
    kept = tmp_path / "snapshots"
    checkpoint.keep_part(path, kept, kinds={"model"})
    assert all(torch.equal(checkpoint.load(kept / path.name).tensors["model"][name], value) for name, value in originals().items())


def test_ranks_with_other_tensors_are_refused_when_they_save(tmp_path):
    first, second = ({**originals(), **more} for more in ({}, {"more": torch.zeros(2)}))
    said = [manifest.told(sorted(found), owned(found, rank=rank, ranks=2)) for rank, found in enumerate((first, second))]
    with pytest.raises(ValueError, match="rank 1 has other tensors to save than the first one"):
        manifest.merged(sorted(first), said)


def test_a_manifest_grows_with_ranks_and_not_with_tensors_times_ranks(tmp_path):
    """A block more costs its name."""

    def size(blocks: int, ranks: int) -> int:
        names = sorted(f"blocks.{number:04d}.weight" for number in range(blocks))
        pieces = [TensorShard(torch.empty(1, 8, device="meta"), (rank, 0), (ranks, 8)) for rank in range(ranks)]
        said = [manifest.told(names, dict.fromkeys(names, piece)) for piece in pieces]
        return len(manifest.text_of(manifest.Contents({}, {"model": manifest.merged(names, said)}, {})))

    few, many = size(10, 32), size(300, 32)
    assert (many - few) / 290 < 30 and size(300, 64) - many < 32 * 25


def test_a_sum_that_was_not_taken_is_never_written(tmp_path):
    def work(rank: int) -> None:
        mesh = init_device_mesh("cpu", (2,))
        value = DTensor.from_local(torch.ones(3), mesh, [Partial()])
        with pytest.raises(ValueError, match="has not been taken"):
            owned({"a": value}, rank=rank, ranks=2)

    in_ranks(2, tmp_path, work)


def test_tensors_that_all_hold_alike_are_dealt_out_by_size():
    tensors = {f"t{size}": torch.zeros(size) for size in (100, 60, 40, 30, 20, 10, 0)}
    dealt = [owned(tensors, rank=rank, ranks=3) for rank in range(3)]
    assert sorted(name for each in dealt for name in each) == sorted(tensors)
    assert max(sum(prod(piece.shape) for piece in each.values()) for each in dealt) == 100
