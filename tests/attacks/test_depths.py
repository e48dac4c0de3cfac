"""Every file and folder of a run and of a dataset, at every depth, as a link out, a pipe behind a link, a hole, or nothing at all."""

import os
from pathlib import Path

import pytest

from tests.attacks.harness import assert_bounded, in_turn
from tests.attacks.material import TRAIN

DATA = (
    *(f"columns/{name}.bin" for name in ("fps", "frames", "height", "key_end", "keys", "offset", "sha256", "size", "split", "suffix")),
    *("latent-*-000000.parquet", "latent-*-000000.tar", "latents-*.json", "text-*-000000.safetensors", "text-*-places.npy", "text-*.json"),
    *(f"latents-*/{name}.bin" for name in ("offset", "sha256", "shape", "size")),
    *("meta-000000.parquet", "dataset.json", "columns", "latents-????????"),
)
STEP = "checkpoints/step-00000002"
RUN = (
    *(f"{STEP}/{name}" for name in ("ema.safetensors", "model.safetensors", "optimizer.safetensors", "rng.safetensors")),
    *(f"{STEP}/state.json", f"{STEP}/manifest.json", STEP, "checkpoints", "config.yaml", "run.json", "metrics.jsonl", "goodput.jsonl"),
    *("vae/vae.json", "vae/vae.safetensors", "vae"),
)
WORDS = {
    "data": ("train", *TRAIN, "data.folders=[{place}]", "vae={vae}", "steps=1", "output={out}"),
    "live": ("train", "resume={place}", "steps=3", "resume_allow=[steps]", "data.folders=[{data}]"),
}


def outside(path: Path, folder: Path) -> Path:
    return folder / f"outside{path.suffix}"


def link(path: Path, folder: Path) -> None:
    """What it was, in another place."""
    path.rename(outside(path, folder))
    path.symlink_to(outside(path, folder))


def pipe(path: Path, folder: Path) -> None:
    """Whoever reads it waits for ever."""
    path.rename(folder / "aside")
    os.mkfifo(outside(path, folder))
    path.symlink_to(outside(path, folder))


def hole(path: Path, folder: Path) -> None:
    """As long as a disk, and empty."""
    if path.is_dir():
        return link(path, folder)
    with open(path, "ab") as file:
        file.truncate(1 << 40)
    return None


def nowhere(path: Path, folder: Path) -> None:
    path.rename(folder / "aside")
    path.symlink_to(folder / "not there")


def itself(path: Path, folder: Path) -> None:
    path.rename(folder / "aside")
    path.symlink_to(path)


def other_kind(path: Path, folder: Path) -> None:
    """A folder for a file, a file for a folder."""
    was = path.is_dir()
    path.rename(folder / "aside")
    path.write_bytes(b"x" * 100) if was else path.mkdir()


HOW = (link, pipe, hole, nowhere, itself, other_kind)
CASES = in_turn([*(("data", name) for name in DATA), *(("live", name) for name in RUN)], HOW)


@pytest.mark.parametrize(("what", "how"), CASES, ids=lambda one: one[1] if isinstance(one, tuple) else one.__name__)
def test_nothing_is_waited_for_or_read_elsewhere_whichever_file_it_is(sora, material, made, tmp_path, what, how):
    kind, pattern = what
    place, beyond = material.copy(kind), tmp_path / "beyond"
    beyond.mkdir()
    path = next(iter(sorted(place.glob(pattern))))
    how(path, beyond)
    before = {one.name: one.lstat().st_mtime_ns for one in beyond.rglob("*")}
    ended = sora(*(word.format(place=place, vae=made / "vae", data=made / "data", out=tmp_path / "out") for word in WORDS[kind]))
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told
    assert {one.name: one.lstat().st_mtime_ns for one in beyond.rglob("*")} == before, ended.told
    if how is link and ended.code == 0:  # a checkpoint that is not read is passed over for the one before, and named
        told = "passed over a damaged checkpoint" in ended.out + ended.err and "is a link out of" in ended.out + ended.err
        assert told and pattern.startswith(STEP), f"read through a link\n{ended.told}"


def test_a_hard_link_is_the_file_itself(sora, material, made, tmp_path):
    """Nobody can make one to what he may not read; and backups are made of them."""
    data = material.copy("data")
    for path in [path for path in data.rglob("*") if path.is_file()]:
        os.link(path, tmp_path / f"hard-{path.stat().st_ino}")
    words = [word.format(place=data, vae=made / "vae", out=tmp_path / "out") for word in WORDS["data"]]
    assert sora(*words).code == 0
