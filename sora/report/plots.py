"""Plots as inline SVG in the page's colours, light or dark; the same values always give the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from sora.report.page import number

INK = "#010203"  # a placeholder that no plot uses otherwise; it is replaced by the page's text colour
WIDE = 4.8  # inches; on a phone, letters of 9 points remain legible
_LABEL = 80  # characters
COLOURS = ("#2f7fb8", "#d9822b", "#3f9d5f", "#b04a8c", "#8a7a2f", "#6f63c4")


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, across: str, up: str, logarithmic: bool = False, smooth: int = 1
) -> str:
    """A plot of lines (x, y) by name, with the labels of its axes, as one `<svg>` element.

    smooth: window of a centred running mean; the raw points stay visible behind it. Values that are not finite leave gaps.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(WIDE, 2.6))
    for (name, (xs, ys)), colour in zip(series.items(), _repeated(len(series)), strict=True):
        if smooth > 1 and len(ys) > smooth:
            axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.8)
            means = _running_mean(ys, smooth)
            axes.plot(xs[smooth // 2 :][: len(means)], means, color=colour, label=_plain(name), linewidth=1.6)
        else:
            axes.plot(xs, ys, color=colour, label=_plain(name), linewidth=1.6)
    axes.set_xlabel(_plain(across))
    axes.set_ylabel(_plain(up))
    if logarithmic and any(y > 0 for _, ys in series.values() for y in ys):
        axes.set_yscale("log")
        _plain_powers(axes.yaxis)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=INK)
    return _finished(figure)


def bars(values: Mapping[str, float], *, across: str) -> str:
    """A horizontal bar for each name, as one `<svg>` element; long names fit."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(WIDE, 0.5 + 0.32 * max(1, len(values))))
    names = [_plain(name) for name in values]
    drawn = axes.barh(range(len(names)), list(values.values()), color=COLOURS[0], height=0.65)
    axes.bar_label(drawn, fmt=lambda value: number(float(f"{value:.3g}")), padding=3, color=INK, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(_plain(across))
    axes.margins(x=0.12)
    return _finished(figure)


def histogram(values: Sequence[float], *, across: str, limits: Sequence[float] = (), bins: int = 40) -> str:
    """A histogram as one `<svg>` element, with a dashed line at each of `limits`. Values that are not finite are left out."""
    figure, axes = _pyplot().subplots(figsize=(WIDE, 2.2), layout="constrained")
    finite = [value for value in values if math.isfinite(value)]
    ends = [*finite, *limits]  # bars are as wide as the axis asks for, also where all values are equal and a limit is far
    axes.hist(finite, bins=bins, range=(min(ends), max(ends)) if ends else None, color=COLOURS[0])
    for limit in limits:
        axes.axvline(limit, color=COLOURS[1], linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_xlabel(_plain(across))
    axes.set_ylabel("clips")
    return _finished(figure)


@dataclass(frozen=True)
class Panel:
    """One of several plots side by side. lines: (x, y) by name. bands: (x, low, high) around that line. level: a dashed line."""

    title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]
    level: float | None = None


def panels(items: Sequence[Panel], *, across: str, marker: str = "o") -> list[str]:
    """Small plots with a common x axis, as one `<svg>` element each: points with `marker`, joined by lines, with shaded intervals."""
    return [_panel(item, across=across, marker=marker) for item in items]


def _panel(item: Panel, *, across: str, marker: str) -> str:
    figure, axes = _pyplot().subplots(figsize=(WIDE, 2.2), layout="constrained")
    for (name, (xs, ys)), colour in zip(item.lines.items(), _repeated(len(item.lines)), strict=True):
        axes.plot(xs, ys, color=colour, label=_plain(name), linewidth=1.6, marker=marker, markersize=3)
        if name in item.bands:
            at, low, high = item.bands[name]
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    if item.level is not None:
        axes.axhline(item.level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set_title(_plain(item.title), color=INK, fontsize=9, loc="left")
    axes.set_xlabel(_plain(across))
    if len(item.lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _finished(figure)


@dataclass(frozen=True)
class ValueInterval:
    """A value with its interval, and its floor: the value expected for two equal sets (NaN: unknown)."""

    value: float
    low: float
    high: float
    floor: float = math.nan


def counts(table: Sequence[Sequence[int]], *, down: Sequence[str], along: Sequence[str], across: str, up: str) -> str:
    """A table of counts as shades, each row by its share, with the numbers above 0 written in. down, along: names of rows and columns."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(1.6 + 0.55 * len(along), 1.0 + 0.36 * len(down)))
    totals = [max(sum(row), 1) for row in table]
    axis.imshow([[count / total for count in row] for row, total in zip(table, totals, strict=True)], cmap="Blues", vmin=0, vmax=1.4)
    axis.set_xticks(range(len(along)), [_plain(name) for name in along], rotation=40, ha="right")
    axis.set_yticks(range(len(down)), [_plain(name) for name in down])
    for place, row in enumerate(table):
        for column, count in enumerate(row):
            if count:
                axis.text(column, place, str(count), ha="center", va="center", fontsize=8)
    axis.set_xlabel(across)
    axis.set_ylabel(_plain(up))
    return _finished(figure)


def intervals(spans: Mapping[str, ValueInterval], *, across: str, shares: bool = False) -> str:
    """A point with its interval and a mark at its floor for each name, as one `<svg>` element. shares: values lie between 0 and 1."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(WIDE, 0.6 + 0.34 * max(1, len(spans))))
    for place, span in enumerate(spans.values()):
        axes.plot([span.low, span.high], [place, place], color=COLOURS[0], linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([span.value], [place], color=COLOURS[0], marker="o", markersize=5)
        if not math.isnan(span.floor):
            axes.plot([span.floor], [place], color=INK, marker="|", markersize=11, markeredgewidth=1.4)
        axes.annotate(
            f"{span.value:.3g}", (span.value, place), textcoords="offset points", xytext=(0, 6), ha="center", color=INK, fontsize=8
        )
    axes.set_yticks(range(len(spans)), [_plain(name) for name in spans])
    axes.set_ylim(len(spans) - 0.4, -0.7)
    if shares:
        axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(_plain(across))
    return _finished(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib; install it with: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sora", "font.family": "sans-serif", "font.size": 9})
    return pyplot


def _finished(figure: Any) -> str:
    from matplotlib import pyplot

    for axes in figure.axes:
        axes.tick_params(colors=INK, which="both")
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.grid(True, color=INK, alpha=0.12, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    whole = text.getvalue()
    return whole[whole.index("<svg") :].replace(INK, "currentColor")


def _plain_powers(axis: Any) -> None:
    """Label a logarithmic axis with 0.04 instead of 4 × 10⁻², for values of moderate size."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    chosen = LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5))  # which minor ticks have room for a number
    chosen.set_axis(axis)

    def told(value: float, place: int | None = None) -> str:
        return f"{value:g}" if chosen(value, place) else ""

    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(told))


def _plain(text: str) -> str:
    """A label for matplotlib without mathematics (`$…$`), cut if it is too long for a plot."""
    return (text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…").replace("$", r"\$")


def _repeated(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
