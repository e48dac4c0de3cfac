"""What the results of a stage hold: their columns, and what no stage writes into them, so that a file that others made ends in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

POSITIVE = 1e-9  # the least of numbers that are above 0


@dataclass(frozen=True, kw_only=True)
class ResultForm:
    """The form of the results of a stage, which it states once, and by which every file is checked when it is read.

    schema: the columns, in order. lacking: those that are null in rows that have a `reason`, and in no others. least: the smallest value of
    columns of numbers, all of which are finite; least_made: in rows without a reason. rising: whether `number` rises from row to row.
    counted: whether it counts the rows, from 0. spans: whether frames `first` to `end` are spans, "apart" if they are also in order and
    apart. texts: what columns of texts match. unique: a column whose values differ. rows: how many there are, where that is known.
    """

    schema: pa.Schema
    lacking: Collection[str] = ()
    least: Mapping[str, float] = field(default_factory=dict)
    least_made: Mapping[str, float] = field(default_factory=dict)
    rising: bool = True
    counted: bool = False
    spans: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    unique: str = ""
    rows: int | None = None

    def check_columns(self, schema: pa.Schema) -> None:
        """Raise ValueError for the columns of a file that are not these."""
        if schema.equals(self.schema):
            return
        names, there = self.schema.names, schema.names
        if names != there:
            odd = sorted(set(names) ^ set(there))
            raise ValueError(f"its columns are others ({', '.join(odd)[:200]})" if odd else "its columns are in another order")
        name = next(name for name in names if schema.field(name) != self.schema.field(name))
        raise ValueError(f"its column {name} is of {schema.field(name).type}, not {self.schema.field(name).type}")

    def check(self, table: pa.Table, *, first: int = 0, before: int = -1) -> None:
        """Raise ValueError for values that no stage writes. table: some of the columns. first, before: the number of its first row, and
        `number` in the row before."""
        if self.rows is not None and table.num_rows != self.rows:
            raise ValueError(f"it has {table.num_rows} rows, not {self.rows}")
        for name in table.column_names if table.num_rows else ():
            self._check_whole(table, name)
        _check_numbers(table, self.least)
        if self.least_made and {"reason", *self.least_made} <= set(table.column_names):
            _check_numbers(table.filter(pc.equal(table["reason"], "")), self.least_made)
        for name in (name for name in self.texts if name in table.column_names):
            if not pc.all(pc.match_substring_regex(table[name], self.texts[name])).as_py() and table.num_rows:
                raise ValueError(f"its {name} is no {name} in a row")
        if self.unique in table.column_names and pc.count_distinct(table[self.unique]).as_py() < table.num_rows:
            raise ValueError(f"its {self.unique} is the same in several rows")
        if "number" in table.column_names and table.num_rows:
            numbers = table["number"].to_numpy()
            if self.counted and (numbers != np.arange(first, first + len(numbers))).any():
                raise ValueError("its number does not count the rows")
            if self.rising and (numbers[0] <= before or (np.diff(numbers) <= 0).any()):
                raise ValueError("its number does not rise from row to row")
        if self.spans and {"first", "end"} <= set(table.column_names):
            begins, ends = table["first"].to_numpy(), table["end"].to_numpy()
            if (begins >= ends).any() or (self.spans == "apart" and (begins[1:] < ends[:-1]).any()):
                raise ValueError("its first and end are no spans of frames in order")

    def _check_whole(self, table: pa.Table, name: str) -> None:
        """Raise ValueError for nulls that no stage writes."""
        column = table[name]
        if pa.types.is_map(column.type) and any(part.null_count or part.items.null_count for part in column.chunks):
            raise ValueError(f"its {name} is null in a row")
        if not column.null_count:
            return
        if name not in self.lacking:
            raise ValueError(f"its {name} is null in a row")
        if "reason" in table.column_names and pc.any(pc.and_(pc.is_null(column), pc.equal(table["reason"], ""))).as_py():
            raise ValueError(f"its {name} is null in a row that has no reason for it")


def _check_numbers(table: pa.Table, least: Mapping[str, float]) -> None:
    """Raise ValueError for numbers that are below the least of their column, or not finite."""
    for name in (name for name in least if name in table.column_names):
        values = table[name].to_numpy()
        if wrong := values[~(np.isfinite(values) & (values >= least[name]))].tolist()[:1]:
            raise ValueError(f"its {name} is {wrong[0]} in a row")
