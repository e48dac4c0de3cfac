"""The way of docs/captions.md without a model, as it stands there: each command runs, and a recaptioning ends with the one that follows."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from sora.data.index.index import Index
from tests.test_own_videos import BIN, ROOT, phone_video, shortened


def block() -> list[str]:
    page = (ROOT / "docs" / "captions.md").read_text(encoding="utf-8")
    lines = re.search(r"```bash\n(.*?)```", page.split("## Offline, with the stub", 1)[1], re.DOTALL)
    assert lines is not None
    return lines[1].splitlines()


def ran(line: str, folder: Path) -> list[str]:
    """The lines that a command printed."""
    paths = os.pathsep.join([str(folder / "bin"), str(BIN), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, f"{line}\n{found.stdout[-2000:]}\n{found.stderr[-2000:]}"
    return found.stdout.splitlines()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_way_without_captions_leads_to_samples_as_it_stands(tmp_path):
    (tmp_path / "videos").mkdir()
    for name, colour in {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}.items():
        phone_video(tmp_path / "videos" / f"IMG ({name}).mp4", colour, size=(320, 180))
    shortened(tmp_path / "bin", 24)
    commands = block()
    assert [shlex.split(line)[1] for line in commands] == ["prepare", "recaption", "train", "encode", "train", "sample"]
    for line, following in zip(commands, [*commands[1:], ""], strict=True):
        told = ran(line, tmp_path)
        if line is commands[1]:
            assert shlex.split(told[-1]) == ["next:", *shlex.split(following)]
            index = Index.open(tmp_path / "data" / "mine")
            said = {one.kind for row in range(len(index)) for one in index.captions(row)}
            assert said == {"short", "dense"} and (tmp_path / "outputs/mine_captions/colours/captions.html").is_file()
    assert list((tmp_path / "outputs" / "mine" / "samples").rglob("*.mp4"))
