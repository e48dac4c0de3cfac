"""Tables of prompts and captions whose columns are of types that no text and no number is: one line with the place, or what was meant."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.data.index import latents
from sora.data.index.index import Index
from sora.gate.records import records
from sora.generation.prompts import read_prompts

DAY = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
TYPES = {
    "a day": pa.array([DAY.date()]),
    "a time": pa.array([DAY]),
    "a time of no day": pa.array([1 << 62], pa.timestamp("us")),
    "a span": pa.array([datetime.timedelta(days=1)]),
    "a span of no days": pa.array([1 << 62], pa.duration("us")),
    "decimals": pa.array([decimal.Decimal("1.5")]),
    "decimals of many digits": pa.array([decimal.Decimal("9" * 70)], pa.decimal256(76)),
    "truth": pa.array([True]),
    "whole numbers": pa.array([(1 << 64) - 1], pa.uint64()),
    "short floats": pa.array([1.5], pa.float32()),
    "not a number": pa.array([float("nan")]),
    "an end of numbers": pa.array([float("inf")]),
    "nothing": pa.array([None]),
    "nothing of texts": pa.array([None], pa.string()),
    "bytes": pa.array([b"\xff\xfe"]),
    "bytes of one length": pa.array([b"ab"], pa.binary(2)),
    "lists": pa.array([["a", "b"]]),
    "lists of lists": pa.array([[["a"], []]]),
    "an empty list": pa.array([[]], pa.list_(pa.string())),
    "a mapping": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "a struct": pa.array([{"a": {"b": 1}}]),
    "a dictionary": pa.array(["x"]).dictionary_encode(),
    "large texts": pa.array(["x"], pa.large_string()),
    "a text of nothing": pa.array([""]),
    "a text of spaces": pa.array([" \t\n"]),
    "a text of nulls": pa.array(["\0\0"]),
    "a text that steers": pa.array(["\x1b[2J\u202e"]),
}
KEYS = ("prompt", "negative", "size", "seconds", "fps", "seed")


def table(kind, key):
    columns = {"prompt": pa.array(["x"]), "file": pa.array(["clip0.mp4"])}
    return pa.table({**columns, key: TYPES[kind]})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_column_of_prompts_is_of_its_kind(tmp_path, kind, key):
    path = tmp_path / "a.parquet"
    pq.write_table(table(kind, key), path)
    try:
        (line,) = read_prompts(None, str(path))
    except ValueError as error:
        told = str(error)
        assert "a.parquet" in told and "\n" not in told and len(told) < 500
    else:
        for name, types in (
            ("prompt", str),
            ("negative", str),
            ("size", str),
            ("seconds", (int, float)),
            ("fps", (int, float)),
            ("seed", int),
        ):
            value = getattr(line, name)
            assert value is None or isinstance(value, types), (name, value)


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_of_a_table_is_read_or_told(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(table(kind, "other"), path)
    try:
        (row,) = records(path, "captions=a.parquet")
        assert row.values["prompt"] == "x"
    except ValueError as error:
        assert "a.parquet" in str(error)


ODD = (
    "1e400",
    "-1",
    "true",
    "null",
    "[1]",
    "{}",
    '"x"',
    '""',
    "1" * 5000,
    '"\\ud800"',
    "1e-320",
    "9007199254740993",
    '"٣"',
    '"1_0"',
    '"nan"',
    '"1:30"',
)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:20])
def test_a_value_of_a_line_is_of_its_kind(tmp_path, key, value):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "%s": %s}\n' % (key, value) if key != "prompt" else f'{{"prompt": {value}}}\n')  # noqa: UP031
    try:
        (line,) = read_prompts(None, str(path))
        json.dumps(line._asdict() if hasattr(line, "_asdict") else vars(line), allow_nan=False).encode()
    except ValueError as error:
        assert "a.jsonl" in str(error) and len(str(error)) < 500


SPOILT = {
    "no keys": lambda table: table.drop_columns(["key"]),
    "no hashes": lambda table: table.drop_columns(["source_sha256"]),
    "no columns": lambda table: table.select([]),
    "keys that are days of no calendar": lambda table: table.set_column(0, "key", pa.array([1 << 62] * table.num_rows, pa.timestamp("us"))),
    "keys that are lists": lambda table: table.set_column(0, "key", pa.array([["a"]] * table.num_rows)),
    "keys that are nothing": lambda table: table.set_column(0, "key", pa.nulls(table.num_rows)),
    "no rows": lambda table: table.slice(0, 0),
    "reasons that are numbers": lambda table: table.set_column(table.num_columns - 1, "refused", pa.array([1] * table.num_rows)),
    "settings that are none": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"settings": b"["}),
    "settings that are a list": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"settings": b"[]"}),
    "settings of no UTF-8": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"settings": b"\xff"}),
}


@pytest.mark.parametrize("what", [*SPOILT, "a link out"])
def test_latents_that_a_stranger_wrote_are_none_and_are_made_again(material, tmp_path, what):
    data = material.copy("data")
    (path,) = data.glob("latent-*.parquet")
    vae = json.loads(next(data.glob("latents-*.json")).read_text())["vae"]
    settings = json.loads(pq.read_schema(path).metadata[b"settings"])
    index = Index.open(data)
    told = {"number": 0, "vae_hash": vae}
    assert latents.finished(index, range(len(index)), settings=settings, **told)
    if what == "a link out":
        path.rename(tmp_path / "outside.parquet")
        path.symlink_to(tmp_path / "outside.parquet")
    else:
        pq.write_table(SPOILT[what](pq.read_table(path)), path)
    try:
        assert not latents.finished(index, range(len(index)), settings=settings, **told) or what == "reasons that are numbers"
        assert isinstance(latents.refused(index, **told), dict)
    except ValueError as error:
        assert path.name in str(error)
