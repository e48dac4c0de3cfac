"""Cached caption states: found by text, refused when stale or damaged."""

import json
import pickle

import numpy as np
import pytest
import torch

from sora.text import cache
from sora.text.byte import ByteEncoder


def encoder(max_tokens=20):
    return ByteEncoder(width=8, depth=1, reach=1, max_tokens=max_tokens)


CAPTIONS = ["a red ball", "a blue ball", "a red ball", "a very long caption about nothing"]


def test_what_was_encoded_is_found_by_its_text(tmp_path):
    assert cache.extend(tmp_path, encoder(), CAPTIONS, shard=2) == 4  # three texts and the empty one
    found = cache.TextCache(tmp_path, encoder().fingerprint)
    for store in (found, pickle.loads(pickle.dumps(found))):
        for caption in (*CAPTIONS, ""):
            torch.testing.assert_close(store.states(caption), encoder().encode([caption])[0], atol=0, rtol=0)
    with pytest.raises(ValueError, match="'green' is not among the cached ones"):
        found.states("green")


def test_only_new_captions_are_encoded_and_a_cut_loses_no_whole_file(tmp_path):
    class Cut(ByteEncoder):
        def encode(self, captions):
            if "z" in captions:
                raise KeyboardInterrupt
            return super().encode(captions)

    with pytest.raises(KeyboardInterrupt):
        cache.extend(tmp_path, Cut(width=8, depth=1, reach=1, max_tokens=20), ["x", "y", "z"], shard=1)
    assert cache.extend(tmp_path, encoder(), ["x", "y", "z", "w"], shard=8) == 2
    found = cache.TextCache(tmp_path, encoder().fingerprint)
    assert all(caption in found for caption in ("", "x", "y", "z", "w"))


def test_another_encoders_cache_and_a_flipped_byte_are_refused(tmp_path):
    cache.extend(tmp_path, encoder(), CAPTIONS, shard=8)
    with pytest.raises(ValueError, match=r"no captions encoded by this text encoder.*those of byte.*sora encode"):
        cache.TextCache(tmp_path, encoder(19).fingerprint)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is missing or damaged"):
        cache.TextCache(tmp_path, encoder().fingerprint)


def test_states_that_cannot_be_stored_are_refused(tmp_path):
    class Hot(ByteEncoder):
        def encode(self, captions):
            return [state * 1e6 for state in super().encode(captions)]

    with pytest.raises(ValueError, match="float16 cannot hold"):
        cache.extend(tmp_path, Hot(width=8, depth=1, reach=1, max_tokens=20), ["x"], shard=1)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_was_cut_is_read_without_its_table_and_a_damaged_table_is_refused(tmp_path, monkeypatch):
    cache.extend(tmp_path, encoder(), ["x"], shard=1)
    older = cache.manifest_path(tmp_path, encoder().fingerprint).read_text()
    cache.extend(tmp_path, encoder(), ["y", "z"], shard=1)
    path = cache.manifest_path(tmp_path, encoder().fingerprint)
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"places": json.loads(older)["places"]}))  # as it was before the last line was written
    found = cache.TextCache(tmp_path, encoder().fingerprint)
    for caption in ("", "x", "y", "z"):
        torch.testing.assert_close(found.states(caption), encoder().encode([caption])[0], atol=0, rtol=0)
    path.write_text(json.dumps(manifest))
    (table,) = tmp_path.glob("*.npy")
    whole = table.read_bytes()
    for spoilt in (whole[:-48], whole[:-1] + b"\xff", b""):
        table.write_bytes(spoilt)
        for at_once in (1 << 30, 0)[: 1 if len(spoilt) == len(whole) else 2]:
            monkeypatch.setattr(cache, "_HASHED_AT_ONCE", at_once)
            with pytest.raises(ValueError, match=f"{table.name}.*sora encode"):
                cache.TextCache(tmp_path, encoder().fingerprint)
    table.unlink()
    with pytest.raises(ValueError, match=f"{table.name} is missing"):
        cache.TextCache(tmp_path, encoder().fingerprint)


def test_large_caches_are_compared_with_their_hashes_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_HASHED_AT_ONCE", 0)
    cache.extend(tmp_path, encoder(), ["x", "y"], shard=1)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    found = pickle.loads(pickle.dumps(cache.TextCache(tmp_path, encoder().fingerprint)))
    for caption in ("", "x"):
        found.states(caption)
    with pytest.raises(ValueError, match=f"{last.name} is missing or damaged"):
        found.states("y")
    last.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{last.name} is missing or damaged"):
        cache.TextCache(tmp_path, encoder().fingerprint)


def test_hashes_that_begin_alike_are_told_apart():
    places = np.zeros(4, dtype=cache._PLACES)
    places["first"], places["start"] = [1, 7, 7, 9], [0, 10, 20, 30]
    places["rest"] = np.array([bytes([number]) * 24 for number in range(4)], dtype="V24")
    key = {number: f"{int(places['first'][number]):016x}" + bytes([number] * 24).hex() for number in range(4)}
    assert [cache._found(places, key[number])[1] for number in range(4)] == [0, 10, 20, 30]
    assert cache._found(places, f"{7:016x}" + bytes([3] * 24).hex()) is None
    assert cache._found(places, "ff" * 32) is None and cache._found(places[:0], key[0]) is None


def test_parts_that_were_encoded_at_once_join_into_one_cache(tmp_path):
    """Captions that several parts have are one; a part that is repeated after the joining overwrites nothing."""
    for part, texts in enumerate((["x", "y"], ["y", "z"], [])):
        cache.extend(tmp_path, encoder(), texts, shard=1, part=part)
    with pytest.raises(ValueError, match="no captions encoded by this text encoder"):
        cache.TextCache(tmp_path, encoder().fingerprint)
    assert cache.extend(tmp_path, encoder(), ["x", "y", "z"], shard=1) == 0
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert cache.extend(tmp_path, encoder(), ["x", "w"], shard=1, part=1) == 1
    assert cache.extend(tmp_path, encoder(), ["x", "v"], shard=1) == 1
    assert kept == {name: (tmp_path / name).read_bytes() for name in kept}
    found = cache.TextCache(tmp_path, encoder().fingerprint)
    for caption in ("", "v", "w", "x", "y", "z"):
        torch.testing.assert_close(found.states(caption), encoder().encode([caption])[0], atol=0, rtol=0)
    assert not list(tmp_path.glob("*-part-*.json"))


def test_a_cache_names_no_files_but_its_own(tmp_path):
    """Datasets are passed on with their caches: what a manifest lists is read, so it must lie beside it."""
    folder = tmp_path / "set"
    folder.mkdir()
    cache.extend(folder, encoder(), CAPTIONS, shard=2)
    path = cache.manifest_path(folder, encoder().fingerprint)
    whole = json.loads(path.read_text())
    name = whole["shards"][0]["file"]
    (tmp_path / name).write_bytes((folder / name).read_bytes())  # the same bytes and hash, elsewhere
    elsewhere = [f"../{name}", str(tmp_path / name), f"x/{name}", "", 3, None]
    changes = [{"shards": [whole["shards"][0] | {"file": wrong}, *whole["shards"][1:]]} for wrong in elsewhere]
    changes += [{"places": whole["places"] | {"file": wrong}} for wrong in ("../x-places.npy", 3)]
    changes += [{"shards": wrong} for wrong in ({}, ["x"], [{"file": name}], [whole["shards"][0] | {"captions": -1}])] + [{"places": []}]
    for change in changes:
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=f"{path.name} is damaged: "):
            cache.TextCache(folder, encoder().fingerprint)
    path.write_text(json.dumps([whole]))
    with pytest.raises(ValueError, match="of another encoder or version"):
        cache.TextCache(folder, encoder().fingerprint)
