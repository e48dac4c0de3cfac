"""The parts of a report (figures, tables, plots, videos, text, commands), and their rendering to one HTML file.

The page has no script and loads nothing (its content policy forbids both); videos are embedded. Any text may be a stranger's, such as a
caption, and is escaped. Only `Plot.svgs` are inserted unescaped, so they must come from `sora.report.plots`. Links may only lead to files
beside the page.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

TINY = 160  # a clip with smaller sides is enlarged with sharp pixels


@dataclass(frozen=True)
class Figure:
    """One number. value: as text. note: n, floor or target."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Numbers in large type, side by side."""

    items: Sequence[Figure]


@dataclass(frozen=True)
class Table:
    """A table; cells are text or numbers, and numbers are aligned right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Plot:
    """One plot of `sora.report.plots`, or several side by side, with a description for readers who cannot see it."""

    svgs: str | Sequence[str]
    caption: str

    @property
    def each(self) -> Sequence[str]:
        return [self.svgs] if isinstance(self.svgs, str) else self.svgs


@dataclass(frozen=True)
class Video:
    """One clip: an mp4 that browsers play (H.264, yuv420p), its size in pixels, the text below it, and a JPEG of one frame."""

    mp4: bytes
    width: int
    height: int
    caption: str
    note: str = ""
    marks: Mapping[str, bool | None] = field(default_factory=dict)  # what was asked for, and whether it is shown
    jpeg: bytes = b""
    still: bool = False  # an image, for which the JPEG is enough

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
    """A grid of clips, in rows of `together` (2: an original beside its reconstruction)."""

    clips: Sequence[Video]
    together: int = 1

    @property
    def broad(self) -> bool:
        """Whether cells of the grid must be twice as wide as high."""
        wide = [clip for clip in self.clips if clip.width > 1.9 * clip.height]
        return self.together > 1 or len(wide) > len(self.clips) / 2

    def rows(self) -> list[Sequence[Video]]:
        return [self.clips[start : start + self.together] for start in range(0, len(self.clips), self.together)]


@dataclass(frozen=True)
class Picture:
    """A still image: a JPEG, its size in pixels, and the text below it."""

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
        return max(self.width, self.height) < TINY  # large clips have reduced stills, and flat ones stay sharp


@dataclass(frozen=True)
class PictureGrid:
    """A grid of still images. paired: each two of them stay side by side."""

    items: Sequence[Picture]
    paired: bool = False


@dataclass(frozen=True)
class Strip:
    """Frames of one clip in a row, with columns of texts about it below, each (heading, text). marks: short words beside the title."""

    title: str
    frames: Sequence[Picture]
    columns: Sequence[Sequence[tuple[str, str]]]
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Commands as typed; one click selects a whole line."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Links:
    """Links to files beside the page: (text, path relative to the page's folder, with / between parts)."""

    items: Sequence[tuple[str, str]]

    def safe(self) -> list[tuple[str, str]]:
        """The links with encoded paths. Raises ValueError for an absolute or an empty path."""
        if wrong := [path for _, path in self.items if path.startswith("/") or not path]:
            raise ValueError(f"{wrong[0]!r} is no path relative to the page's folder")
        return [(text, "./" + quote(path, errors="surrogateescape")) for text, path in self.items]


@dataclass(frozen=True)
class Folded:
    """Parts that are hidden behind their title until a click."""

    title: str
    parts: Sequence[Part]


Part = Figures | Table | Plot | VideoGrid | PictureGrid | Strip | Prose | Commands | Links | Folded


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A report. lead: its first paragraph. again: seconds after which a browser reloads the page, for a page that is updated."""

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
        finalize=lambda value: shown(value) if type(value) is str else value,  # not HTML that is marked as safe
    )
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["number"] = number
    environment.tests["number"] = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    return environment.get_template("page.html.j2").render(page=page)


def number(value: Any) -> str:
    """A number with four significant figures, and thin spaces between thousands."""
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.4g}"
