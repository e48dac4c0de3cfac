"""Material that attacks spoil: made once, by the program itself, and copied for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import trained
from tests.attacks.harness import Server


class Material:
    """Small folders as the program writes them; `copy` gives one of a test's own.

    dit: a diffusion run of two checkpoints. vae: a VAE's artefact. data: a dataset of the world, encoded by that VAE and the run's text
    encoder. videos: a folder of videos with captions. own: the dataset made of it.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        self.folder, self.own = folder, own

    def copy(self, name: str) -> Path:
        place = self.own / name
        shutil.copytree(self.folder / name, place, symlinks=True)
        return place


@pytest.fixture(scope="session")
def sora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("trials"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, sora: Server) -> Path:
    """The folder that `Material` copies from."""
    folder = tmp_path_factory.mktemp("material")
    vae, data = trained.vae_artefact(folder / "vae"), trained.world_dataset(folder / "data", clips=8)
    trained.diffusion_run(folder / "dit", vae=vae, data=data)
    for ended in (
        sora("encode", f"data={data}", f"vae={vae}", "text=byte", seconds=120),
        sora("prepare", "source=folder", f"input={_videos(folder / 'videos')}", f"output={folder / 'own'}", seconds=120),
    ):
        assert ended.code == 0, ended.told
    return folder


@pytest.fixture
def material(made: Path, tmp_path: Path) -> Material:
    return Material(made, tmp_path)


def _videos(folder: Path) -> Path:
    import numpy as np

    from sora.data.video import encode

    folder.mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (17, 48, 64, 3), dtype=np.uint8)
        (folder / f"clip{number}.mp4").write_bytes(encode(frames, 8.0, lossless=True))
        (folder / f"clip{number}.txt").write_text(f"noise number {number}")
    return folder
