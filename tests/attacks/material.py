"""What attacks spoil, made by the program itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attacks.harness import Server

# A run of two steps that takes seconds.
TRAIN = ("experiment=toy", "plan.budget=200", "trainer.threads=1", "trainer=cpu", "workers=0", "evaluation=none", "checkpoint.every=1")


def make(folder: Path) -> None:
    """The parts that no command makes: random weights behind real configurations, videos, tars. In a process of its own."""
    import io
    import tarfile

    import numpy as np

    from sora.video.files import encode
    from tests import trained

    vae, data = trained.vae_artefact(folder / "vae"), trained.world_dataset(folder / "data", clips=8)
    trained.diffusion_run(folder / "dit", vae=vae, data=data)
    for name in ("videos", "tars"):
        (folder / name).mkdir()
    with tarfile.open(folder / "tars/00000.tar", "w") as tar:
        for number in range(3):
            frames = np.random.default_rng(number).integers(0, 256, (17, 48, 64, 3), dtype=np.uint8)
            content = encode(frames, 8.0, lossless=True)
            (folder / f"videos/clip{number}.mp4").write_bytes(content)
            (folder / f"videos/clip{number}.txt").write_text(f"noise number {number}")
            for suffix, part in (("mp4", content), ("txt", b"noise")):
                member = tarfile.TarInfo(f"clip{number}.{suffix}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))


def complete(folder: Path, sora: Server) -> None:
    """All of it; see `tests.attacks.conftest.Material`."""
    for words in (
        ("!make", str(folder)),
        ("encode", "data=data", "vae=vae", "text=byte"),
        ("prepare", "source=folder", "input=videos", "output=own"),
        ("train", *TRAIN, "steps=2", "data.folders=[data]", "vae=vae", "output=live"),
        ("data", "index", "tars", "output=indexed"),
        ("evaluate", "checkpoint=vae", "data=[data]", "n=2", "output=scores"),
    ):
        ended = sora(*words, cwd=folder, seconds=300)
        assert ended.code == 0, ended.told
