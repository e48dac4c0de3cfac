"""Checkpoints: whole or not there, and damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora.runs import checkpoint, manifest
from sora.runs.checkpoint import TrainingState
from sora.system import files as storage
from tests.faults import Countdown, die, full, in_child, injected


def state_of(step: int) -> TrainingState:
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "model": {
            "a": torch.randn(3, 5, generator=draw),
            "b": torch.randn(7, generator=draw).bfloat16(),
            "flag": torch.tensor([True, False, True]),
        },
        "optimizer": {"a:step": torch.tensor(float(step)), "a:count": torch.arange(3), "empty": torch.zeros(0, 4)},
        "rng": {"0.torch": torch.arange(11, dtype=torch.uint8)},
    }
    return TrainingState(step=step, samples=step * 10, tokens=step * 100, tensors=tensors, facts={"suspects": [[3, [1, 2]]]})


def same(first: TrainingState, second: TrainingState) -> bool:
    keys = {(file, name) for file in first.tensors for name in first.tensors[file]}
    if keys != {(file, name) for file in second.tensors for name in second.tensors[file]}:
        return False
    facts = (first.step, first.samples, first.tokens, first.facts) == (second.step, second.samples, second.tokens, second.facts)
    pairs = [(first.tensors[file][name], second.tensors[file][name]) for file, name in keys]
    return facts and all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): storage.file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_saved_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, state_of(3), keep=2)
    assert path.name == "step-00000003"
    assert same(checkpoint.load(path), state_of(3))


def test_the_files_are_safetensors_to_its_own_library_and_nothing_is_pickled(tmp_path):
    path = checkpoint.save(tmp_path, state_of(3), keep=2)
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "manifest.json",
    }
    assert torch.equal(load_file(path / "model.safetensors")["b"], state_of(3).tensors["model"]["b"])


def test_equal_states_are_equal_bytes(tmp_path):
    first, second = (checkpoint.save(tmp_path / name, state_of(3), keep=1) for name in "ab")
    assert hashes(first) == hashes(second)


def test_a_transposed_view_is_saved_as_what_it_shows(tmp_path):
    state = TrainingState(step=1, samples=0, tokens=0, tensors={"model": {"t": torch.arange(6.0).reshape(2, 3).T}})
    loaded = checkpoint.load(checkpoint.save(tmp_path, state, keep=1))
    assert torch.equal(loaded.tensors["model"]["t"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"step": "3", "samples": 0, "tokens": 0, "facts": {}}', '{"step": 3, "samples": 0, "tokens": 0, "facts": 1}']
)
def test_a_state_of_another_form_is_refused_by_name(tmp_path, text):
    """Every hash is right: somebody made it so."""
    path = checkpoint.save(tmp_path, state_of(3), keep=1)
    listed = manifest.contents(path)
    (path / "state.json").write_text(text)
    files = {**listed.files, "state.json": {"bytes": len(text), "sha256": storage.text_hash(text)}}
    (path / "manifest.json").write_text(manifest.text_of(listed._replace(files=files)))
    with pytest.raises(ValueError, match=r"state\.json is damaged: "):
        checkpoint.load(path)


@pytest.fixture
def quick(tmp_path):
    """A folder in memory if there is one: these tests sync thousands of times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def boundaries_of(folder: Path) -> int:
    """How many there are in a save that also lets an older checkpoint go."""
    for step in (1, 2):
        checkpoint.save(folder, state_of(step), keep=2)
    with injected(Countdown(0, die)) as countdown:
        checkpoint.save(folder, state_of(3), keep=2)
    return countdown.seen


@pytest.mark.slow
def test_a_kill_at_any_boundary_leaves_the_last_whole_one_and_older_ones_untouched(quick):
    boundaries = boundaries_of(quick / "count")
    assert boundaries >= 50
    for step in (1, 2):
        checkpoint.save(quick / "start", state_of(step), keep=2)
    outcomes = set()
    for at in range(1, boundaries + 1):
        folder = quick / f"kill{at}"
        shutil.copytree(quick / "start", folder)

        def work(folder: Path = folder, at: int = at) -> None:
            with injected(Countdown(at, die)):
                checkpoint.save(folder, state_of(3), keep=2)

        assert in_child(work) == -signal.SIGKILL
        newest = checkpoint.newest(folder)
        assert newest is not None
        step = checkpoint.step_of(newest)
        outcomes.add(step)
        assert step in (2, 3)
        for kept in checkpoint.listed(folder):  # nothing that carries a checkpoint's name is anything but whole
            assert same(checkpoint.load(kept), state_of(checkpoint.step_of(kept)))
        checkpoint.sweep(folder)
        assert all(path.name.startswith("step-") for path in folder.iterdir())
        if step == 2:
            checkpoint.save(folder, state_of(3), keep=2)
        assert same(checkpoint.load(checkpoint.folder_of(folder, 3)), state_of(3))
        shutil.rmtree(folder)
    assert outcomes == {2, 3}


def test_a_full_disk_at_any_boundary_changes_nothing_and_leaves_nothing(quick):
    boundaries = boundaries_of(quick / "count")  # more than there are here, where only what comes before an act counts
    folder = quick / "run"
    for step in (1, 2):
        checkpoint.save(folder, state_of(step), keep=2)
    before, refused = hashes(folder), 0
    for at in range(1, boundaries + 1):
        try:
            with injected(Countdown(at, full)):
                checkpoint.save(folder, state_of(3), keep=2)
        except OSError:
            refused += 1
        assert not [path for path in folder.glob(".*") if not path.name.startswith(".staging-old-")]
        if checkpoint.folder_of(folder, 3).exists():  # committed: what failed came later, or could be done without
            assert same(checkpoint.load(checkpoint.newest(folder)), state_of(3))
            shutil.rmtree(folder)
            for step in (1, 2):
                checkpoint.save(folder, state_of(step), keep=2)
        assert hashes(folder) == before
    assert refused > 30


def commit_of(folder: Path, step: int):
    """The work of saving in a folder that holds two older ones."""
    shutil.rmtree(folder, ignore_errors=True)
    for older in (1, 2):
        checkpoint.save(folder, state_of(older), keep=2)
    return lambda: checkpoint.save(folder, state_of(step), keep=2)


def test_a_disk_with_too_little_room_for_a_checkpoint_keeps_what_it_has(quick, faults):
    tried = 0
    commit_of(quick / "before", 3)
    before = hashes(quick / "before")
    for _ in faults.disks(lambda: commit_of(quick / "run", 3), sizes=12):
        assert hashes(quick / "run") == before  # nothing half-written either
        assert checkpoint.newest(quick / "run") == checkpoint.folder_of(quick / "run", 2)
        tried += 1
    assert tried == 12


@pytest.mark.slow
def test_a_limit_of_the_kernels_own_on_files_is_a_full_disk_too(quick, faults):
    """RLIMIT_FSIZE: the write that goes beyond it fails, with nobody's wrapper around it."""
    commit_of(quick / "before", 3)()
    largest = max(path.stat().st_size for path in (quick / "before").rglob("*.*") if path.is_file())
    sizes = [largest * number // 10 for number in range(11)]
    codes = []
    for code in faults.files(lambda: commit_of(quick / "run", 3), sizes):
        codes.append(code)
        kept = checkpoint.newest(quick / "run")
        assert checkpoint.step_of(kept) == (3 if code == 0 else 2)
        assert same(checkpoint.load(kept), state_of(checkpoint.step_of(kept)))
        assert not list((quick / "run").glob(".*"))
    assert codes == [errno.EFBIG] * 10 + [0]


@pytest.mark.slow
def test_a_kill_while_averages_outlive_their_checkpoint_leaves_only_whole_ones(quick, faults):
    def begin():
        shutil.rmtree(quick / "run", ignore_errors=True)
        checkpoint.save(quick / "run" / "checkpoints", profiled(1), keep=2)
        saving = checkpoint.Saving(quick / "run" / "checkpoints", profiled(3), rank=0, ranks=1)
        saving.write()
        return lambda: saving.commit(keep=1, keep_every=0, snapshots=1)

    found = set()
    for _ in faults.kills(begin):
        for folder in (quick / "run" / "checkpoints", quick / "run" / checkpoint.SNAPSHOTS):
            for path in checkpoint.listed(folder):
                checkpoint.verify(path)
        kept = {checkpoint.step_of(path) for path in (quick / "run").rglob("step-*") if not path.parent.name.startswith(".")}
        assert 1 in kept  # the averages of a checkpoint are never gone
        found.add(3 in kept)
        checkpoint.sweep(quick / "run")
        assert not list((quick / "run").rglob(".staging*"))
    assert found == {True, False}


def profiled(step: int) -> TrainingState:
    tensors = {"model": {"a": torch.full((2,), float(step))}, "ema": {"a": torch.zeros(2)}, "ema_2": {"a": torch.ones(2)}}
    return TrainingState(step=step, samples=0, tokens=0, tensors=tensors, facts={"profiles": {"ema": 0.1, "ema_2": 0.05}})


def test_checkpoints_that_a_signal_left_make_no_regular_one_go(tmp_path):
    for step in (4, 8, 9, 10, 11, 12, 13):
        saving = checkpoint.Saving(tmp_path, state_of(step), rank=0, ranks=1)
        saving.write()
        saving.commit(keep=2, keep_every=0, every=4)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path)] == [8, 12, 13]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path, name):
    path = checkpoint.save(tmp_path, state_of(4), keep=1)
    whole = (path / name).read_bytes()
    for position in range(0, len(whole), 1 if name.endswith("json") else 3):
        broken = bytearray(whole)
        broken[position] ^= 1 << (position % 8)
        (path / name).write_bytes(broken)
        with pytest.raises(ValueError, match="step-00000004") as caught:
            checkpoint.load(path)
        if name != "manifest.json":
            assert name in str(caught.value)
    (path / name).write_bytes(whole)
    assert same(checkpoint.load(path), state_of(4))


def test_a_torn_missing_or_foreign_file_is_refused_by_name(tmp_path):
    path = checkpoint.save(tmp_path, state_of(4), keep=1)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        checkpoint.load(path)
    (path / "model.safetensors").write_bytes(whole)
    (path / "evil.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"evil\.pt does not belong"):
        checkpoint.load(path)


def test_a_manifest_that_was_rewritten_to_fit_a_changed_file_is_still_refused(tmp_path):
    path = checkpoint.save(tmp_path, state_of(4), keep=1)
    text = (path / "state.json").read_text().replace('"step": 4', '"step": 5')
    (path / "state.json").write_text(text)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        checkpoint.load(path)


def test_the_newest_is_the_newest_whole_one_and_never_nothing_when_all_are_damaged(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, state_of(step), keep=5)
    (checkpoint.folder_of(tmp_path, 100) / "state.json").unlink()
    told = []
    assert checkpoint.newest(tmp_path, report=told.append) == checkpoint.folder_of(tmp_path, 10)
    assert "step-00000100/state.json" in told[0]
    for step in (9, 10):
        (checkpoint.folder_of(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        checkpoint.newest(tmp_path)


def test_the_last_ones_and_the_milestones_are_kept(tmp_path):
    for step in range(1, 9):
        checkpoint.save(tmp_path, state_of(step), keep=2, keep_every=3)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path)] == [3, 6, 7, 8]


def test_a_checkpoint_is_never_written_over(tmp_path):
    checkpoint.save(tmp_path, state_of(1), keep=1)
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.save(tmp_path, state_of(1), keep=1)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path, value):
    state = state_of(2)
    state.tensors["model"]["a"][1, 2] = value
    with pytest.raises(ValueError, match="a holds numbers that are not finite"):
        checkpoint.save(tmp_path, state, keep=1)
    assert not list(tmp_path.iterdir())


WINDOW = {"steps": 1, "skipped": 0, "samples": 1, "tokens": 1, "loss": -3.5, "grad_norm": 1.0, "flops": 0.0}
WINDOW |= {"data_seconds": 0.0, "step_seconds": 0.1, "parts": {"likelihood": [-3.5, 1.0], "levels": [[None, -1.0], [1.0, 1.0]]}}
COUNTERS = {"step": 2, "samples": 20, "tokens": 200}


def with_facts(**facts) -> TrainingState:
    return replace(state_of(2), facts={"counters": COUNTERS, "window": WINDOW, "seconds": 1.0, "losses": [-2.0, 3.0], **facts})


def test_losses_below_zero_and_parts_that_are_not_finite_are_part_of_a_state(tmp_path):
    """The objective of a user may be a log-likelihood, and a part of it infinite where the loss is not."""
    path = checkpoint.save(tmp_path, with_facts(), keep=1)
    assert checkpoint.load(path).facts == with_facts().facts


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"counters": {**COUNTERS, "updates": -1}}, r"facts\.counters\.updates is -1"),
        ({"counters": {**COUNTERS, "step": 3}}, "step is not what its counters say"),
        ({"counters": {**COUNTERS, "samples": 20.0}}, r"facts\.counters\.samples is 20\.0"),
        ({"window": {**WINDOW, "grad_norm": -1.0}}, r"facts\.window\.grad_norm is -1\.0"),
        ({"window": {**WINDOW, "loss": float("nan")}}, r"facts\.window\.loss is nan"),
        ({"window": {name: value for name, value in WINDOW.items() if name != "flops"}}, r"facts\.window\.flops is missing"),
        ({"losses": [float("inf")]}, r"facts\.losses\.0 is inf"),
        ({"profiles": {"ema": 0.0}}, r"facts\.profiles\.ema is 0\.0"),
    ],
)
def test_a_state_that_no_resume_would_take_is_refused_when_it_is_written(tmp_path, facts, named):
    with pytest.raises(ValueError, match=f"step-00000002 is not written, as no resume would take it: {named}"):
        checkpoint.save(tmp_path, with_facts(**facts), keep=1)
    assert not list(tmp_path.iterdir())


def test_older_checkpoints_that_cannot_be_let_go_are_told(tmp_path, monkeypatch):
    told = []

    def refused(path, *_):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    for step in (1, 2):
        saving = checkpoint.Saving(tmp_path, state_of(step), rank=0, ranks=1)
        saving.write()
        with monkeypatch.context() as patch:
            if step == 2:
                patch.setattr(checkpoint, "_remove", refused)
            saving.commit(keep=1, keep_every=0, report=told.append)
    assert "older checkpoints could not be let go" in told[0] and "step-00000001" in told[0] and len(told) == 1
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path)] == [1, 2]
    checkpoint.save(tmp_path, state_of(3), keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path)] == [3]
