"""The kit of a report: sections of figures, tables, plots, videos, text and commands, rendered to one file of HTML.

The page holds no script and loads nothing (its content policy forbids both); videos are data within it. Every text may come from
a stranger (captions do) and is escaped; only `Plot.svgs` go in as they are, so they must come from `sora.report.plots`. Links lead to
files beside the page, and only there.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

TINY = 160  # pixels of a side below which a clip is enlarged with its pixels left sharp


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
    """A picture of `sora.report.plots`, or several side by side, with what they show in words for those who cannot see it."""

    svgs: str | Sequence[str]
    caption: str

    @property
    def each(self) -> Sequence[str]:
        return [self.svgs] if isinstance(self.svgs, str) else self.svgs


@dataclass(frozen=True)
class Video:
    """One clip: bytes of an mp4 that browsers play (H.264, yuv420p), its size in pixels, what stands below it, and a JPEG of one frame."""

    mp4: bytes
    width: int
    height: int
    caption: str
    note: str = ""
    marks: Mapping[str, bool | None] = field(default_factory=dict)  # what was asked for, and whether the clip shows it
    jpeg: bytes = b""
    still: bool = False  # an image, which the JPEG shows as well

    @property
    def source(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.mp4).decode("ascii")

    @property
    def poster(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii") if self.jpeg else ""

    @property
    def tiny(self) -> bool:
        return min(self.width, self.height) < TINY


@dataclass(frozen=True)
class VideoGrid:
    """Clips in a grid; in rows of `together` (2: an original beside its reconstruction)."""

    clips: Sequence[Video]
    together: int = 1

    @property
    def broad(self) -> bool:
        """Whether each place of the grid has to hold what is twice as wide as high."""
        wide = [clip for clip in self.clips if clip.width > 1.9 * clip.height]
        return self.together > 1 or len(wide) > len(self.clips) / 2

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

    @property
    def tiny(self) -> bool:
        return max(self.width, self.height) < TINY  # those of large clips were made smaller: flat ones are no less sharp


@dataclass(frozen=True)
class PictureGrid:
    """Stills in a grid."""

    items: Sequence[Picture]


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Lines as one would type them, each to be taken whole by one click."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Links:
    """Files beside the page: (what it is, its path relative to the page's folder, with parts joined by /)."""

    items: Sequence[tuple[str, str]]

    def safe(self) -> list[tuple[str, str]]:
        """The paths as addresses. Raises ValueError for one that is not below or beside the page's folder."""
        if wrong := [path for _, path in self.items if path.startswith("/") or not path]:
            raise ValueError(f"{wrong[0]!r} is no path relative to the page's folder")
        return [(text, "./" + quote(path, errors="surrogateescape")) for text, path in self.items]


@dataclass(frozen=True)
class Folded:
    """Parts that stand behind their title until it is opened."""

    title: str
    parts: Sequence[Part]


Part = Figures | Table | Plot | VideoGrid | PictureGrid | Prose | Commands | Links | Folded


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
    """A report. `lead` is its first paragraph. again: seconds after which a browser loads the page anew, for one that is written again."""

    title: str
    lead: str
    sections: Sequence[Section]
    again: int | None = None


def render(page: Page) -> str:
    """The page as one HTML document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from sora.system.terminal import shown

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,  # not what is marked as HTML of ours
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
