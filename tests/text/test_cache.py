"""Cached caption states: found by text, refused when stale or damaged."""

import pickle

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
    with pytest.raises(ValueError, match=r"no cached captions.*\['byte'\].*sora encode"):
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
