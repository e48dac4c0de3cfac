"""JSON that others wrote is read or refused by its file's name."""

import pytest

from sora.storage import read_json


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"{} {}"],
    ids=["empty", "cut", "not JSON", "not UTF-8", "deep lists", "deep objects", "very many digits", "two values"],
)
def test_what_is_no_json_is_refused_by_the_name_of_its_file(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="state.json is damaged"):
        read_json(path)
