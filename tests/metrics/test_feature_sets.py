"""Stored features come back bit for bit, only under their protocol, and never from a damaged or foreign file."""

import pytest
import torch
from safetensors.torch import save_file

from sora.metrics.feature_sets import differing, load_features, save_features

FEATURES = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
PROTOCOL = {"extractor": {"name": "x", "input": {"size": [8, 8], "kernel": "legacy"}}, "clips": {"frames": 9}}


def test_what_was_saved_comes_back(tmp_path):
    save_features(tmp_path / "a.safetensors", FEATURES.double(), PROTOCOL)
    found = load_features(tmp_path / "a.safetensors", PROTOCOL)
    assert torch.equal(found.features, FEATURES) and found.protocol == PROTOCOL
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_protocol_is_refused_field_by_field(tmp_path):
    save_features(tmp_path / "a.safetensors", FEATURES, PROTOCOL)
    other = {"extractor": {"name": "x", "input": {"size": (8, 8), "kernel": "half_pixel"}}, "clips": {"frames": 17}, "data": 1}
    with pytest.raises(ValueError, match="another protocol") as raised:
        load_features(tmp_path / "a.safetensors", other)
    told = str(raised.value)
    assert 'extractor.input.kernel: "half_pixel" here, "legacy" there' in told and "clips.frames: 17 here, 9 there" in told
    assert "data: 1 here, nothing there" in told and "size" not in told


def test_fields_that_differ_are_found_on_either_side():
    assert differing({"a": 1, "b": {"c": None}}, {"a": 1, "b": {"c": None}}) == []
    assert differing({"b": {"c": None}}, {"b": {}}) == ["b.c: null here, nothing there"]
    assert differing({"a": 2}, {"a": {"b": 2}}) == ['a: 2 here, {"b": 2} there']


def test_damaged_foreign_and_missing_files_are_told(tmp_path):
    path = tmp_path / "a.safetensors"
    save_features(path, FEATURES, PROTOCOL)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged: its values"):
        load_features(path, PROTOCOL)
    path.write_bytes(good[:40])
    with pytest.raises(ValueError, match="damaged"):
        load_features(path, PROTOCOL)
    save_file({"features": FEATURES}, path)
    with pytest.raises(ValueError, match="no features of this version"):
        load_features(path, PROTOCOL)
    with pytest.raises(ValueError, match="does not exist"):
        load_features(tmp_path / "b.safetensors", PROTOCOL)
