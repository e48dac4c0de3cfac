"""The page of `sora data show`: a dataset's statistics as plots and tables, and some of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sora.ingest.statistics import Description, Thumbnail, heavy, lasting
from sora.report import plots
from sora.report.page import Figure, Figures, Page, Part, Picture, PictureGrid, Plot, Prose, Section, Table, number, render
from sora.system.files import write_text
from sora.system.terminal import counted

_MOST_ROWS = 30


def write_page(path: Path, title: str, described: Description, thumbnails: Sequence[Thumbnail], unreadable: Sequence[str]) -> None:
    """Write the page to one HTML file. unreadable: the errors of clips that could not be shown."""
    totals = described.totals
    (length, unit), (size, prefix) = lasting(totals["seconds"]), heavy(totals["bytes"])
    figures = [
        Figure("clips", number(int(totals["clips"]))),
        Figure(unit, number(length)),
        Figure("frames", number(int(totals["frames"]))),
        Figure(f"{prefix} of video", number(size)),
        Figure("shard" if totals["shards"] == 1 else "shards", number(int(totals["shards"]))),
    ]
    splits = Table(("split", "clips"), list(described.splits.items()))
    pictures = [Picture(one.jpeg, one.width, one.height, one.caption or "(no caption)", one.title) for one in thumbnails]
    shown: list[Part] = [PictureGrid(pictures)]
    shown += [Prose(f"Could not be shown: {why}") for why in unreadable]
    plotted: list[Part] = [
        Plot(plots.bars(histogram.counts, across="clips"), f"Clips by {histogram.about}")
        for histogram in described.histograms
        if histogram.counts
    ]
    plotted += [Prose(line) for line in described.left]
    tables: list[Part] = (
        [Prose(f"Of {number(described.sampled)} {'clip' if described.sampled == 1 else 'clips'}, evenly spread over the dataset.")]
        if described.counted
        else []
    )
    for name, counts in described.counted.items():
        rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        more = [("others", sum(count for _, count in rows[_MOST_ROWS:]))] if len(rows) > _MOST_ROWS else []
        tables.append(Table((name, "clips"), [*rows[:_MOST_ROWS], *more]))
    sections = [
        Section("Totals", [Figures(figures), splits]),
        Section("Clips", shown),
        Section("Sizes, durations, captions", plotted),
        Section("Licences, consent, captioners", tables),
    ]
    shards = int(totals["shards"])
    lead = f"{counted(int(totals['clips']), 'clip')}, {number(length)} {unit}, in {counted(shards, 'shard')}."
    write_text(path, render(Page(title, lead, sections)))
