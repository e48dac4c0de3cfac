"""Files of texts are read in one way: what a line is, what a row is, and that whatever is not whole is told with its line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.gate.records import LONGEST, json_of, lines_of, records, refuse_half, text_of


def rows(path, content, **more):
    """(place without the file's name, values) of each row."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.place.removeprefix("t "), dict(row.values)) for row in records(path, "t", **more)]


def told(path, content, **more) -> str:
    with pytest.raises(ValueError) as error:
        rows(path, content, **more)
    return str(error.value)


@pytest.mark.parametrize("mark", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_no_other_mark_than_a_newline_ends_a_line(tmp_path, mark):
    """`str.splitlines` breaks at all of these."""
    text = f"one{mark}two\nthree\r\nfour"
    assert lines_of(text, "t") == [f"one{mark}two", "three", "four"]
    line = json.dumps({"a": f"one{mark}two"}, ensure_ascii=False).replace("\\r", "\r") if mark != "\r" else '{"a": "one\\rtwo"}'
    found = rows(tmp_path / "t.jsonl", f"{line}\n\n{line}\n")
    assert found == [("line 1", {"a": f"one{mark}two"}), ("line 3", {"a": f"one{mark}two"})]


def test_a_file_of_carriage_returns_alone_is_refused_instead_of_being_one_line():
    with pytest.raises(ValueError, match="no line ends but"):
        lines_of("one\rtwo\r", "t")
    assert lines_of("one\r", "t") == ["one"] and lines_of("", "t") == [""]


@pytest.mark.parametrize("name", ["t.jsonl", "t.JSONL", "t.ndjson", "t.Csv", "t.TSV", "t.json"])
@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_kind_says_the_same_in_every_spelling_and_with_every_mark(tmp_path, name, code):
    wanted = [{"file": "ä.mp4", "text": 'says "hi", twice'}, {"file": "b.mp4", "text": "b"}]
    separator = "\t" if name.lower().endswith("tsv") else ","
    quoted = "\n".join(
        [f"file{separator}text", *(f'{row["file"]}{separator}"{row["text"].replace(chr(34), chr(34) * 2)}"' for row in wanted)]
    )
    kinds = {"csv": quoted, "tsv": quoted, "json": json.dumps(wanted), "jsonl": "\n".join(json.dumps(row) for row in wanted)}
    text = kinds[name.rpartition(".")[2].lower().replace("ndjson", "jsonl")]
    assert [values for _, values in rows(tmp_path / name, text.encode(code))] == wanted


def test_parquet_gives_rows_and_leaves_bytes_unread(tmp_path):
    table = pa.table({"file": ["a", "b"], "text": ["x", None], "media": [b"1", b"2"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "t.PARQUET")
    found = [(row.place, dict(row.values)) for row in records(tmp_path / "t.PARQUET", "t")]
    assert found == [("t row 1", {"file": "a", "text": "x", "n": 1}), ("t row 2", {"file": "b", "text": None, "n": 2})]
    assert "cannot be read as parquet" in told(tmp_path / "u.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "a,b\n1,2\n\n3,4,5\n",
            "line 4 has 3 fields, and the first line names 2 columns; a text that holds commas stands in double quotes",
        ),
        ("a,b\n1\n", "line 2 has 1 field, and the first line names 2 columns"),
        ('a,b\n1,"x\n2,y\n3,z\n', "line 2: a double quote is opened here and never closed"),
        ('a,b\n"one\nline",1\n2,"x"y\n', "line 4: .*quotes within it are doubled"),
        ("a,b\n1,x\ry\n", r"line 2: a field holds \\r"),
        (f"a,b\n1,{'x' * (LONGEST + 1)}\n", "line 2: a field is too long"),
        ("a,a\n1,2\n", "two columns 'a'"),
        ("\n \n", "is empty"),
        (b"a,b\n1,2\nx,\xe9\n", "line 3 is no text in UTF-8"),
    ],
)
def test_a_row_of_a_table_that_is_not_whole_is_told_by_its_line(tmp_path, text, why):
    with pytest.raises(ValueError, match=why):
        rows(tmp_path / "t.csv", text)


def test_quoted_fields_may_hold_lines_and_the_next_row_has_the_files_own_number(tmp_path):
    found = rows(tmp_path / "t.csv", 'a,\n"one\r\nline, and more",1\n,\n2,"x"\n')
    assert found == [("line 2", {"a": "one\r\nline, and more", "": "1"}), ("line 5", {"a": "2", "": "x"})]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"a": 1', "line 2 is no JSON"),
        ('["a"]', "line 2 is no JSON object"),
        ('"a"', "line 2 is no JSON object"),
        ('{"a": 1, "a": 2}', "line 2 is no JSON: an object has the key 'a' twice"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("9" * 5000, "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_no_object_is_told(tmp_path, line, why):
    assert why in told(tmp_path / "t.jsonl", f'{{"a": 0}}\n{line}\n')


def test_texts_stand_for_objects_only_where_they_may(tmp_path):
    assert rows(tmp_path / "t.json", '["one", {"p": "two"}]', bare="p") == [("entry 1", {"p": "one"}), ("entry 2", {"p": "two"})]
    assert "entry 1 is no JSON object" in told(tmp_path / "t.json", '["one"]')
    assert "holds no list" in told(tmp_path / "t.json", '{"p": "one"}', bare="p")


def test_files_that_are_none_are_told(tmp_path):
    for name, why in (("x.csv", "does not exist"), ("x.parquet", "does not exist"), ("x.xlsx", "no table of a kind that is read: .csv")):
        with pytest.raises(ValueError, match=why):
            list(records(tmp_path / name, "t"))
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        list(records(tmp_path / "d.csv", "t"))
    assert text_of(b"\xef\xbb\xbf\xef\xbb\xbfa", "t") == "\ufeffa"  # one mark is none of the text
    for half in ("a dog \ud83d", "\udce9"):
        with pytest.raises(ValueError, match="half a character"):
            refuse_half(half, "t")
    assert json_of('"\\ud83d\\ude00"', "t") == "\U0001f600"
