"""Whose word it is that a place may be read: a seal is of one user, and what is allowed covers what lies in it and nothing beside it."""

import os
import stat
import subprocess
import sys

import pytest

from sora.gate import trust


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(trust.ALLOW, raising=False)
    return tmp_path / "state"


def test_a_seal_is_of_these_words_and_this_user(state, monkeypatch, tmp_path):
    assert not trust.sealed("0" * 64, "a", {"x": 1})  # before there is a key
    seal = trust.seal("a", {"x": 1, "y": None})
    assert trust.sealed(seal, "a", {"y": None, "x": 1})
    for found, said in ((seal, ("a", {"x": 2, "y": None})), (seal, ("b", {"x": 1, "y": None})), (None, ("a",)), (3, ("a",)), ("é", ("a",))):
        assert not trust.sealed(found, *said)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not trust.sealed(seal, "a", {"x": 1, "y": None})
    assert trust.seal("a", {"x": 1, "y": None}) != seal


def test_the_key_is_for_its_owner_alone_and_is_made_once(state):
    asked = [sys.executable, "-c", "from sora.gate import trust; print(trust.seal('x'))"]
    made = [subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in made}) == 1
    assert stat.S_IMODE(trust.key_file().stat().st_mode) == 0o600
    assert [path.name for path in trust.key_file().parent.iterdir()] == ["seal.key"]


def test_without_a_place_for_the_key_nothing_is_sealed_and_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert trust.seal("x") is None
    assert not trust.sealed(None, "x")


def test_what_is_allowed_covers_what_lies_in_it_and_nothing_beside(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/t5").mkdir(parents=True)
    (tmp_path / "models/out").symlink_to("/etc")
    inside = ("s3://bucket/set", "S3://bucket/set/a", "hf://owner/name", tmp_path / "models", tmp_path / "models/t5")
    beside = ("s3://bucket/settle", "s3://bucket", "s3://bucket/set/../other", "https://bucket/set", "hf://owner/other", "hf://owner")
    beside += (tmp_path, tmp_path / "models2", tmp_path / "models/../other", tmp_path / "models/out/passwd")
    assert not any(map(trust.allowed, inside))
    with trust.allowing(["s3://bucket/set/", "hf://owner/name", "models"]):
        os.chdir("/")  # a relative place is of the folder in which it was said
        assert all(map(trust.allowed, inside)) and not any(map(trust.allowed, beside))
        with trust.allowing(["s3://bucket/settle"]):
            assert trust.allowed("s3://bucket/settle") and trust.allowed("s3://bucket/set")
        assert not trust.allowed("s3://bucket/settle")
    assert not any(map(trust.allowed, inside)) and trust.ALLOW not in os.environ


@pytest.mark.parametrize("place", ["", "  ", "a\nb", "https://user:word@host/x"])
def test_what_names_no_place_allows_none(state, place):
    with pytest.raises(ValueError, match=r"--allow"):
        with trust.allowing([place]):
            pass
