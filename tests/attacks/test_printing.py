"""Names and texts of strangers reach terminal and pages as letters: no escape sequence, no override of direction, no line of their own."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import yaml

from sora.system.terminal import STEERING
from tests.attacks.harness import Ended

BAD = "\x1b[2J\x1b]0;title\x07 \u202eTXT\u2066 \x9b31m\x85\u2028"
FORGED = "sora: FORGED all is well"
EVIL = f"evil{BAD}\n{FORGED}\r{FORGED}"


def assert_plain(ended: Ended, *, told: bool = True) -> None:
    """Nothing steers, nothing stands on a line of its own; told: and the word is there, as letters."""
    text = ended.out + ended.err
    assert not (found := STEERING.search(text)), f"{found}\n{ended.told!r}"
    assert not [line for line in text.splitlines() if line.strip().startswith(FORGED)], ended.told
    assert "Traceback" not in text, ended.told
    assert not told or "\\x1b" in text or "\\\\x1b" in text, ended.told


@pytest.fixture
def clip():
    from sora.video.files import encode

    return encode(np.random.default_rng(0).integers(0, 256, (17, 48, 64, 3), dtype=np.uint8), 8.0, lossless=True)


def test_names_of_files_and_captions(sora, tmp_path, clip):
    videos = tmp_path / "videos"
    videos.mkdir()
    name = EVIL.replace("/", "")
    (videos / f"{name}.mp4").write_bytes(clip)
    (videos / "good.mp4").write_bytes(clip)
    (videos / "good.txt").write_text(f"caption {EVIL}")
    (videos / f"{name}.xyz").write_bytes(b"?")
    (videos / f"{name}2.mp4").write_bytes(b"no video")
    ended = sora("prepare", "source=folder", f"input={videos}", f"output={tmp_path / 'set'}", "workers=0", seconds=120)
    assert_plain(ended, told=False)
    assert_plain(sora("data", "show", str(tmp_path / "set"), "workers=0", f"output={tmp_path / 'p.html'}"), told=False)
    if (tmp_path / "p.html").exists():
        assert not STEERING.search((tmp_path / "p.html").read_text())
    assert_plain(sora("evaluate", f"checkpoint={videos}", f"data={videos}", f"output={tmp_path / 'o'}"), told=False)


def test_members_and_texts_of_tars(sora, tmp_path, clip):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        said = {"caption": f"text {EVIL}", "licence": f"licence {EVIL}", "license": f"licence {EVIL}", "captioner": EVIL}
        for key, parts in {
            "good": {"mp4": clip, "json": json.dumps(said).encode()},
            EVIL: {"mp4": b"?"},
            f"other{BAD}": {"mp4": clip},
        }.items():
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    ended = sora("data", "index", str(tmp_path / "tars"), "workers=0", "max_bad_share=1", seconds=120)
    assert_plain(ended, told=False)
    for action in ("check", "show"):
        assert_plain(sora("data", action, str(tmp_path / "tars"), "workers=0"), told=False)
    page = tmp_path / "tars/show.html"
    assert page.exists() and not STEERING.search(page.read_text()) and "\\x1b" in page.read_text()
    assert_plain(sora("data", "index", str(tmp_path / "tars"), f"output={tmp_path / 'no'}", "max_bad_share=0", "workers=0"), told=False)


def test_prompts_and_their_files(sora, material, tmp_path):
    run = material.copy("dit")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": f"a {EVIL}"}) + "\n" + json.dumps({"prompt": "b", f"key{EVIL}": 1}) + "\n")
    words = ["seconds=0.5", "steps=1", "size=24x24", "fps=8"]
    assert_plain(sora("sample", f"checkpoint={run}", f"prompts={tmp_path / 'p.jsonl'}", *words), told=False)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": f"a {EVIL}" + " word" * 400}) + "\n")
    assert_plain(sora("sample", f"checkpoint={run}", f"prompts={tmp_path / 'p.jsonl'}", *words), told=False)
    assert_plain(sora("report", str(run)), told=False)
    page = run / "report.html"
    assert page.exists() and not STEERING.search(page.read_text())


@pytest.mark.parametrize("file", ["run.json", "config.yaml", "dataset.json", "scores.json", "metrics.jsonl", "vae.json"])
def test_keys_and_values_of_small_files(sora, material, file):
    place = material.copy({"dataset.json": "data", "scores.json": "scores", "vae.json": "vae"}.get(file, "live"))
    path = place / file
    if file.endswith("jsonl"):
        path.write_text(path.read_text() + json.dumps({"step": 3, EVIL: 1.0, "loss": EVIL}) + "\n")
    else:
        held = yaml.safe_load(path.read_text())
        path.write_text(json.dumps({**held, EVIL: EVIL, "kind": EVIL, "fingerprint": EVIL, "version": EVIL, "depends": {EVIL: EVIL}}))
    for words in (
        ["sample", f"checkpoint={place}", "prompt=x"],
        ["evaluate", f"checkpoint={place}", f"data={material.folder / 'data'}", "n=1"],
        ["train", f"resume={place}", "steps=3"],
        ["report", str(place)],
        ["compare", str(place)],
        ["export", f"checkpoint={place}", f"output={place.parent / 'out'}"],
        ["data", "check", str(place)],
    ):
        assert_plain(sora(*words), told=False)


def test_words_of_the_command_line_and_folders_of_options(sora, tmp_path):
    folder = tmp_path / f"conf{BAD.replace('/', '')}"
    (folder / "text").mkdir(parents=True)
    (folder / "text/mine.yaml").write_text(json.dumps({"_target_": f"sora.text.byte.{EVIL}", EVIL: 1}))
    for words in (
        ["train", "text=mine", f"--config-dir={folder}"],
        ["train", f"resume={EVIL}"],
        ["train", f"{EVIL}=1"],
        ["train", f"dit={EVIL}"],
        ["train", f"steps={EVIL}"],
        ["sample", f"checkpoint={EVIL}", "prompt=x"],
        ["data", "check", EVIL],
        ["data", "index", EVIL],
        ["prepare", f"input={EVIL}", f"output={tmp_path / 'o'}"],
        [f"--{EVIL}"],
        [EVIL],
        ["train", f"--{EVIL}"],
        ["train", "--help", f"--config-dir={folder}", "text=mine"],
    ):
        assert_plain(sora(*words))
