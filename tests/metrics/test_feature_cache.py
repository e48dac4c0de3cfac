"""What was put comes back by its key, over processes and cuts; another extractor's features and damaged ones never do."""

import pytest
import torch

from sora.metrics.feature_cache import FeatureCache
from tests.faults import Countdown, injected

ABOUT = {"extractor": {"name": "x", "input": {"size": [8, 8]}}, "quantised": True}
ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def cache(folder, about=ABOUT):
    made = FeatureCache(folder, about=about, dimension=3)
    made.refresh()
    return made


def put(made, numbers):
    for number in numbers:
        made.put(f"clip {number}", ROWS[number])
    made.flush()


def test_processes_that_write_at_once_see_one_anothers(tmp_path):
    one, two = cache(tmp_path), cache(tmp_path)
    put(one, [0, 2, 4])
    put(two, [1, 3, 5])
    put(two, [0])  # twice does no harm
    one.refresh()
    assert torch.equal(one.get([f"clip {number}" for number in (5, 0, 3)]), ROWS[[5, 0, 3]])
    assert "clip 5" in one and "clip 6" not in one and torch.equal(cache(tmp_path).get(["clip 1"]), ROWS[1:2])
    with pytest.raises(KeyError):
        one.get(["clip 6"])


def test_another_protocol_sees_nothing_of_it(tmp_path):
    put(cache(tmp_path), range(6))
    for other in ({**ABOUT, "quantised": False}, {"extractor": {"name": "x", "input": {"size": [8, 9]}}, "quantised": True}):
        assert "clip 0" not in cache(tmp_path, other)


def test_a_cut_loses_what_was_not_flushed_and_nothing_else(tmp_path):
    def stop():
        raise KeyboardInterrupt

    put(cache(tmp_path / "counted"), [0, 1])
    with injected(Countdown(-1, stop)) as counted:
        put(cache(tmp_path / "counted"), [2, 3])
    for cut in range(1, counted.seen + 1):
        put(cache(tmp_path / str(cut)), [0, 1])
        with injected(Countdown(cut, stop)), pytest.raises(KeyboardInterrupt):
            put(cache(tmp_path / str(cut)), [2, 3])
        found = cache(tmp_path / str(cut))
        assert torch.equal(found.get(["clip 0", "clip 1"]), ROWS[:2])
        assert ("clip 2" in found) == ("clip 3" in found)


def test_the_same_rows_are_the_same_bytes_and_a_flipped_one_is_told(tmp_path):
    put(cache(tmp_path / "a"), range(6))
    put(cache(tmp_path / "b"), reversed(range(6)))
    (one,), (two,) = ([*(tmp_path / name).rglob("*.safetensors")] for name in ("a", "b"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)
    with pytest.raises(ValueError, match="its values are not those it was written with; delete it"):
        cache(tmp_path / "a")
    one.write_bytes(content[:30])
    with pytest.raises(ValueError, match="is damaged"):
        cache(tmp_path / "a")
    with pytest.raises(ValueError, match=r"features of shape \(2,\)"):
        cache(tmp_path / "b").put("x", torch.zeros(2))
