"""Tables of figures, as text, markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sora.system.terminal import line as one_line


@dataclass(frozen=True)
class Cell:
    """A figure with its 95 % interval, or a mean over runs with their standard deviation; None if it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None


def number(value: float | None, *, figures: int = 4) -> str:
    """A number with four (or `figures`) significant figures; large numbers, such as tokens per second, without powers of ten."""
    if value is None:
        return "–"
    short = f"{value:.{figures}g}"
    return f"{float(short):.0f}" if "e+" in short and abs(value) < 1e9 else short


def told(found: str | Cell) -> str:
    if isinstance(found, str):
        return found
    interval = "" if found.low is None or found.high is None else f" [{number(found.low)}, {number(found.high)}]"
    spread = "" if found.spread is None else f" ± {number(found.spread, figures=2)}"
    return f"{number(found.value)}{spread}{interval}"


def as_text(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """The table as text with aligned columns."""
    lines = [[one_line(told(found)) for found in row] for row in (head, *rows)]
    wide = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "".join("  ".join(text.ljust(width) for text, width in zip(line, wide, strict=True)).rstrip() + "\n" for line in lines)


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    lines = [list(head), ["---"] * len(head), *([told(found) for found in row] for row in rows)]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """The table as a LaTeX tabular of the package booktabs."""
    marks = str.maketrans({mark: f"\\{mark}" for mark in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"})

    def line(texts: Sequence[str]) -> str:
        return " & ".join(text.translate(marks).replace("–", "--").replace("±", r"$\pm$") for text in texts) + r" \\" + "\n"

    body = "".join(line([told(found) for found in row]) for row in rows)
    shape = "l" + "r" * (len(head) - 1)
    return f"\\begin{{tabular}}{{{shape}}}\n\\toprule\n{line(head)}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def as_csv(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """The table as CSV with all digits; intervals and standard deviations are columns of their own."""
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [[row[place] for row in rows] for place in range(len(head))]
    parts = [_parts(column) for column in columns]
    writer.writerow([f"{name} {part}".rstrip() for name, names in zip(head, parts, strict=True) for part in names])
    for row in rows:
        values = [_values(found, names) for found, names in zip(row, parts, strict=True)]
        writer.writerow([value for each in values for value in each])
    return file.getvalue()


def _parts(column: Sequence[str | Cell]) -> list[str]:
    """The suffixes of the CSV columns of one figure."""
    cells = [found for found in column if isinstance(found, Cell)]
    bounds = ["low", "high"] if any(cell.low is not None for cell in cells) else []
    return ["", *(["sd"] if any(cell.spread is not None for cell in cells) else []), *bounds]


def _values(found: str | Cell, parts: Sequence[str]) -> list[Any]:
    if isinstance(found, str):
        return [found, *("" for _ in parts[1:])]
    return [{"": found.value, "sd": found.spread, "low": found.low, "high": found.high}[part] for part in parts]


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str | Cell]]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
