"""Arranges the rows of a comparison by the keys of a sweep: one row per run, or the mean over runs that differ only in a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from sora.report.tables import Cell


@dataclass(frozen=True)
class RunEntry:
    """A row of the comparison, for one run or folder. words: the values of its sweep, by key. texts: columns without figures. lacks: why it
    is left out of means; empty if it is not."""

    label: str
    words: Mapping[str, str]
    texts: Mapping[str, str]
    cells: Mapping[str, Cell]
    lacks: str = ""


@dataclass(frozen=True)
class Board:
    """A table, and notes below it."""

    head: list[str]
    rows: list[list[str | Cell]]
    notes: list[str] = field(default_factory=list)


def arranged(entries: Sequence[RunEntry], over: Sequence[str]) -> Board:
    """The entries as a table. The sweep's keys in which they differ are its first columns. Entries that differ only in the keys `over`
    share a row, with mean and standard deviation over those without `lacks`."""
    keys = [key for key in dict.fromkeys(key for entry in entries for key in entry.words) if len({_word(one, key) for one in entries}) > 1]
    kept = [key for key in keys if key not in over]
    groups: dict[tuple[str, ...], list[RunEntry]] = {}
    for entry in entries:
        groups.setdefault(tuple(_word(entry, key) for key in kept), []).append(entry)
    if len(groups) == len(entries) or len(kept) == len(keys):
        return _each(entries, keys)
    texts, names = _columns(entries, keys)
    alike = [name for name in texts if all(len({one.texts.get(name) for one in group if not one.lacks}) <= 1 for group in groups.values())]
    rows: list[list[str | Cell]] = []
    for words, group in groups.items():
        whole = [entry for entry in group if not entry.lacks]
        count = str(len(group)) if len(whole) == len(group) else f"{len(whole)} of {len(group)}"
        told = [next((entry.texts[name] for entry in whole if name in entry.texts), "–") for name in alike]
        rows.append([*words, count, *told, *(_mean([entry.cells[name] for entry in whole if name in entry.cells]) for name in names)])
    notes = [f"± is the standard deviation over runs that differ in {' and '.join(over)} alone; sora compare … over=[] gives a row to each"]
    notes += [f"left out of the means: {entry.label}: {entry.lacks}" for entry in entries if entry.lacks]
    return Board([*kept, "runs", *alike, *names], rows, notes)


def _each(entries: Sequence[RunEntry], keys: Sequence[str]) -> Board:
    """A row for each entry, named by the sweep's values if these differ for all entries, else by its label."""
    told = [tuple(_word(entry, key) for key in keys) for entry in entries]
    worded = bool(keys) and len(set(told)) == len(entries)
    texts, names = _columns(entries, keys if worded else ())
    rows: list[list[str | Cell]] = [
        [
            *(words if worded else (entry.label,)),
            *(entry.texts.get(name, "–") for name in texts),
            *(entry.cells.get(name, Cell(None)) for name in names),
        ]
        for entry, words in zip(entries, told, strict=True)
    ]
    return Board([*(keys if worded else [""]), *texts, *names], rows, [f"{one.label}: {one.lacks}" for one in entries if one.lacks])


def _columns(entries: Sequence[RunEntry], told: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of text columns, without those that the sweep's keys show, and of the figures that any entry has."""
    texts = [name for name in dict.fromkeys(name for entry in entries for name in entry.texts) if name not in told]
    return texts, list(dict.fromkeys(name for entry in entries for name in entry.cells))


def _word(entry: RunEntry, key: str) -> str:
    return entry.words.get(key, "–")


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell.value for cell in cells if cell.value is not None]
    return Cell(fmean(values) if values else None, spread=stdev(values) if len(values) > 1 else None)
