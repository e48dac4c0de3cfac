"""Material that attacks spoil: made once, by the program itself, and copied for each."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.harness import Server
from tests.attacks.material import complete


class Material:
    """Small folders as the program writes them; `copy` gives one of a test's own.

    dit: a diffusion run of two checkpoints, with random weights. vae: a VAE's artefact. data: a dataset of the world, encoded by that VAE
    and the run's text encoder. videos: a folder of videos with captions. own: the dataset made of it. live: a run of two steps, trained on
    data. tars: shards of others. scores: an evaluation of videos.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        self.folder, self.own = folder, own

    def copy(self, name: str) -> Path:
        place = self.own / name
        # Another process of the tests may sample from the run meanwhile, and hold what it reads in a folder that comes and goes.
        shutil.copytree(self.folder / name, place, symlinks=True, ignore=shutil.ignore_patterns(".staging-*"))
        return place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder, whatever else is collected with it: `make test` leaves it out."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.attacks)


@pytest.fixture(scope="session")
def sora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("trials"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, sora: Server) -> Path:
    """The folder that `Material` copies from; made by the process that has all imported already, and by commands, once for all the
    processes of pytest-xdist, whose folders lie in one."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp().parent / "material" if several else tmp_path_factory.mktemp("material")
    with open(f"{folder}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            complete(folder, sora)
            (folder / "whole").touch()
    return folder


@pytest.fixture
def material(made: Path, tmp_path: Path) -> Material:
    return Material(made, tmp_path)
