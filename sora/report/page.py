"""The kit of a report: sections of figures, tables, plots, videos, text and commands, rendered to one file of HTML.

The page holds no script and loads nothing (its content policy forbids both); videos are data within it. Every text may come from
a stranger (captions do) and is escaped; only `Plot.svg` goes in as it is, so it must come from `sora.report.plots`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN_WIDTH = 176  # tiny clips are enlarged by a whole factor until a square one would be about this wide


@dataclass(frozen=True)
class Figure:
    """One number and what it says: `value` as it should read, `note` for n, floor or target."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Numbers in large type, side by side."""

    items: Sequence[Figure]


@dataclass(frozen=True)
class Table:
    """Rows under a heading; cells are text, numbers are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Plot:
    """A picture of `sora.report.plots`, with what it shows in words for those who cannot see it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Video:
    """One clip: bytes of an mp4 that browsers play (H.264, yuv420p), its size in pixels, and what stands below it."""

    mp4: bytes
    width: int
    height: int
    caption: str
    note: str = ""
    marks: Mapping[str, bool | None] = field(default_factory=dict)  # what was asked for, and whether the clip shows it

    @property
    def source(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.mp4).decode("ascii")

    @property
    def shown_width(self) -> int:
        """The width on the page: a whole multiple of the clip's, so that pixels stay square and even."""
        return self.width * max(1, round(SHOWN_WIDTH / (self.width * self.height) ** 0.5 - 0.5))


@dataclass(frozen=True)
class Videos:
    """Clips in a grid; in rows of `together` (2: an original beside its reconstruction)."""

    clips: Sequence[Video]
    together: int = 1

    def rows(self) -> list[Sequence[Video]]:
        return [self.clips[start : start + self.together] for start in range(0, len(self.clips), self.together)]


@dataclass(frozen=True)
class Picture:
    """A still: bytes of a JPEG, its size in pixels, and what stands below it."""

    jpeg: bytes
    width: int
    height: int
    caption: str
    note: str = ""

    @property
    def source(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


@dataclass(frozen=True)
class Pictures:
    """Stills in a grid."""

    items: Sequence[Picture]


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Lines as one would type them."""

    lines: Sequence[str]


Part = Figures | Table | Plot | Videos | Pictures | Prose | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A report. `lead` is its first paragraph."""

    title: str
    lead: str
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as one HTML document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["number"] = number
    environment.tests["number"] = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    return environment.get_template("page.html.j2").render(page=page)


def number(value: Any) -> str:
    """A number for people: four significant figures, thousands set apart by thin spaces."""
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.4g}"
