"""Reads tables and lists of text that people write: lines, JSON, CSV and parquet, in one way for all commands.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one. A line ends with \\n or \\r\\n only; other marks at which some
programs break lines (\\r, \\v, \\f, U+0085, U+2028) are part of the text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sora.gate.files import read
from sora.gate.texts import FileLimit, once, refuse_deep, refuse_many

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
LONGEST = csv.field_size_limit()  # characters of one value
TABLE = FileLimit(256 << 20, 16_000_000)  # of a table; .parquet files may be larger, because they are read in parts
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Record(NamedTuple):
    """A row of a table. place: for messages, as in "captions.csv line 3". typed: false if every value is text, as in .csv."""

    place: str
    values: Mapping[str, Any]
    typed: bool


def read_bytes(path: Path, named: str, *, most: int = TABLE.bytes) -> bytes:
    """The content of a file. Raises ValueError if it does not exist, is no regular file, cannot be read or has more than `most` bytes."""
    try:
        return read(path, most=most)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), named, 1)) from None
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror}") from None


def text_of(content: bytes, named: str) -> str:
    """Decode text. Raises ValueError with the line that cannot be decoded."""
    wide = content.startswith(_WIDE)
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = "UTF-16, as its first bytes say" if wide else "UTF-8"
        raise ValueError(f"{named} line {line} is no text in {what} ({error.reason}); save it as UTF-8") from None


def lines_of(text: str, named: str) -> list[str]:
    """The lines of a text, without line ends. Raises ValueError if \\r alone ends all of them."""
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise ValueError(f"{named} has no line ends but \\r, as on old Macintoshes; save it with \\n")
    return [line.removesuffix("\r") for line in text.split("\n")]


def json_of(text: str, named: str) -> Any:
    """The value of a JSON text. Raises ValueError for other text, and for a duplicate key, because one of its values would be lost."""
    try:
        refuse_many(text.encode("utf-8", "surrogatepass"), TABLE)
        value = json.loads(text, object_pairs_hook=once)
        refuse_deep(value, TABLE)
        return value
    except (ValueError, RecursionError) as error:  # also integers with too many digits
        raise ValueError(f"{named} is no JSON: {error}") from None


def refuse_half(text: str, named: str) -> None:
    """Raise ValueError for text that cannot be encoded: a tool cut it inside a character, or its bytes were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{named} holds half a character (a lone surrogate): {text[:60]!a}") from None


def records(path: Path, named: str, *, bare: str | None = None) -> Iterator[Record]:
    """The rows of a table, in order; the file's suffix, in upper or lower case, tells its kind. Empty lines are skipped.

    named: the key and the file, for messages. bare: the key for JSON texts that stand in place of objects; None refuses them.

    Raises:
        ValueError: the file or a row does not fit its kind; the message has the line.
    """
    path, kind = Path(path), Path(path).suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{named} is no table of a kind that is read: {', '.join(TABLES)}")
    if kind == ".parquet":
        yield from _parquet(path, named)
        return
    text = text_of(read_bytes(path, named), named)
    if kind in (".csv", ".tsv"):
        yield from _separated(text, named, separator="," if kind == ".csv" else "\t")
        return
    if kind == ".json":
        value = json_of(text, named)
        if not isinstance(value, list):
            raise ValueError(f"{named} holds no list; a table in JSON is a list of objects, [{{…}}, …], or a .jsonl with one on each line")
        items = [(f"{named} entry {number}", item) for number, item in enumerate(value, 1)]
    else:
        lines = ((f"{named} line {number}", line) for number, line in enumerate(lines_of(text, named), 1))
        items = ((place, json_of(line, place)) for place, line in lines if line.strip())
    for place, item in items:
        if isinstance(item, str) and bare is not None:
            item = {bare: item}
        if not isinstance(item, dict):
            raise ValueError(f"{place} is no JSON object, {{…}}")
        yield Record(place, item, typed=True)


def _separated(text: str, named: str, *, separator: str) -> Iterator[Record]:
    """The rows below a header line; each must have as many fields as the header."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{named} line {line}: {_told(error)}") from None
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        if names is None:
            names = _names([cell.strip() for cell in row], named)
            _refuse_other_separator(names, named, line, separator)
        elif len(row) != len(names):
            sign = "commas" if separator == "," else "tabs"
            more = f"; a text that holds {sign} stands in double quotes" if len(row) > len(names) else ""
            fields, columns = (f"{len(them)} {what}{'s' * (len(them) != 1)}" for them, what in ((row, "field"), (names, "column")))
            raise ValueError(f"{named} line {line} has {fields}, and the first line names {columns}{more}")
        else:
            yield Record(f"{named} line {line}", dict(zip(names, row, strict=True)), typed=False)
    if names is None:
        raise ValueError(f"{named} is empty; its first line names the columns")


def _refuse_other_separator(names: Sequence[str], named: str, line: int, separator: str) -> None:
    """Raise ValueError for a table with one column whose name contains another separator. Spreadsheets write it in countries with decimal
    commas, and a whole row would be read as one text."""
    others = {",": ("commas", ";\t"), "\t": ("tabs", ",;")}
    what, signs = others[separator]
    if len(names) == 1 and any(sign in names[0] for sign in signs):
        raise ValueError(
            f"{named} line {line} names one column, {names[0][:60]!r}: {what} stand between columns of this kind of file; save it so"
        )


def _told(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end" in said:
        return "a double quote is opened here and never closed"
    if "field limit" in said:
        return f"a field is too long, over {LONGEST} letters; or a double quote that is opened here is not closed"
    if "new-line" in said:
        return "a field holds \\r, which is no line end; put the text in double quotes"
    return f"{said}; a text that holds separators, quotes or line ends stands in double quotes, and quotes within it are doubled"


def _names(names: list[str], named: str) -> list[str]:
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise ValueError(f"{named} has two columns {twice!r}; one of them would be lost: rename it")
    return names


def _parquet(path: Path, named: str) -> Iterator[Record]:
    import pyarrow as pa

    from sora.gate import parquet

    number = 0
    try:
        with parquet.opened(path) as file:
            schema = file.schema_arrow
            _names(list(schema.names), named)
            kept = [field.name for field in schema if not (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))]
            for batch in parquet.batches(file, path, kept):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{named} row {number}", values, typed=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{named} cannot be read as parquet: {error}") from None
