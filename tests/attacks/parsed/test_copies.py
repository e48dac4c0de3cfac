"""What of a stranger's run is copied into one of this user's: the files that it needs, and nothing that lies beside them."""

import os
from pathlib import Path

import pytest

from sora.runs import run
from sora.system import files as storage
from sora.vae import artefact
from tests.trained import vae_artefact

NAMES = {"vae.json", "vae.safetensors"}


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    return vae_artefact(tmp_path_factory.mktemp("copies") / "vae")


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def hole(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 42)


def folders(path: Path) -> None:
    path.mkdir()
    (path / "out").symlink_to("/etc")


BESIDE = {
    "a link out": link,
    "a pipe": os.mkfifo,
    "a hole": hole,
    "a link in a folder": folders,
    "itself": lambda path: path.symlink_to("."),
}


@pytest.fixture
def stranger(vae, tmp_path):
    place = tmp_path / "stranger"
    storage.copy_files(NAMES, vae, place)
    return place


@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_a_vae_is_not_taken_along(stranger, tmp_path, what):
    BESIDE[what](stranger / "notes")
    made = run.create(tmp_path / "run", config="{}", info={"kind": "diffusion", "depends": {"vae": "x" * 12}}, vae=stranger)
    assert {path.name for path in made.vae.iterdir()} == NAMES
    made.depend_on({"vae": artefact.artefact_hash(stranger)}, vae=stranger)  # another one takes its place
    assert {path.name for path in made.vae.iterdir()} == NAMES
    assert not [path for path in made.folder.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("what", ["a link out", "a pipe", "a folder", "nothing"])
def test_nor_is_it_in_the_place_of_its_files(stranger, tmp_path, name, what):
    (stranger / name).unlink()
    if what == "a folder":
        (stranger / name).mkdir()
    elif what != "nothing":
        BESIDE[what](stranger / name)
    with pytest.raises(ValueError, match=name):
        run.create(tmp_path / "run", config="{}", info={"kind": "diffusion", "depends": {}}, vae=stranger)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".staging*"))
