"""Folders of videos to score: what they hold is told by its bytes, and whatever is not scored is named."""

import io
import json

import PIL
import pytest
from PIL import Image

from sora.evaluation.videos.clips import ClipPolicy, take
from sora.evaluation.videos.made import FittedVideos, whole
from sora.evaluation.videos.sets import EVALUATION, FolderVideos
from tests.data.making import counting, muxed, telling


def still(number):
    file = io.BytesIO()
    Image.fromarray(telling(1, 32, 48, seed=number)[0]).save(file, "PNG")
    return file.getvalue()


def test_videos_are_told_by_their_bytes_and_all_the_rest_is_named(tmp_path):
    film = muxed(counting(5))
    (tmp_path / "evaluation").mkdir()
    held = {"a.mp4": film, "b": film, "c.MKV": film, "grid.png": still(0), "text.bin": b"a text", "notes.md": b"# a", ".x.mp4": film}
    held |= {
        "a.json": json.dumps({"prompt": "a card"}).encode(),
        "b.txt": b"another",
        f"evaluation/{EVALUATION}": b"",
        "evaluation/d.mp4": film,
    }
    for name, content in held.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    found = FolderVideos(tmp_path)
    assert found.names == ["a.mp4", "b", "c.MKV"]
    assert [found.prompt(number) for number in range(3)] == ["a card", "another", None]
    speak = {"a.json": "is text", "b.txt": "is text"}
    assert {one.source: one.reason for one in found.passed} == speak | {
        ".x.mp4": "is hidden",
        "gone.mp4": "is a link to nowhere (No such file or directory)",
        "grid.png": "is an image beside videos",
        "notes.md": "is text",
        "text.bin": "is text",
    }
    assert found.lines()[0].startswith(f"{tmp_path}: 5 passed over: .x.mp4 is hidden; gone.mp4 is a link to nowhere")


def test_a_folder_of_images_alone_is_scored_as_clips_of_one_frame(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(still(number))
    found = FolderVideos(tmp_path)
    assert [(found.frames(number), found.shape(number).height) for number in range(3)] == [(1, 32)] * 3
    assert (found.read(1, 0, 1) == telling(1, 32, 48, seed=1)).all()
    assert not found.lines()


def test_features_of_images_are_known_by_what_reads_images_and_those_of_videos_are_not(tmp_path, monkeypatch):
    def keys(folder):
        videos = FolderVideos(folder)
        policy = ClipPolicy(frames=None, stride=1, windows=1, start="first", short="refuse", choose="first")
        clips = take(videos, policy, n=None, seed=0, named="real")
        fitted = whole(FittedVideos(clips, (1, 8, 8)))
        return [made.key(number) for made in (clips, fitted) for number in range(len(made))]

    places = {"films": muxed(counting(5)), "images": still(0)}
    for name, content in places.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(content)
    before = {name: keys(tmp_path / name) for name in places}
    monkeypatch.setattr(PIL, "__version__", "another")
    assert keys(tmp_path / "films") == before["films"]
    assert not set(keys(tmp_path / "images")) & set(before["images"])


def test_a_folder_without_any_says_what_it_holds(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"nor a video or an image: a\.bin is a web page"):
        FolderVideos(tmp_path)


def test_what_is_called_a_video_and_is_none_is_refused(tmp_path):
    """A score over fewer clips than there are names is another score."""
    (tmp_path / "a.mp4").write_bytes(muxed(counting(5)))
    (tmp_path / "b.MP4").write_bytes(b"a text")
    with pytest.raises(ValueError, match=r"b\.MP4 is called a video, but is text; make it anew, or take it out"):
        FolderVideos(tmp_path)
