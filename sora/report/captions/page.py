"""The page of `sora recaption`: frames with old and new captions, the worst first, words by captioner, failures by cause, and the cost."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from sora.captions.checks.flags import FLAGS
from sora.report import plots
from sora.report.captions.view import FAILED, CaptionView, ShownCaption
from sora.report.page import Commands, Figure, Figures, Page, Part, Picture, Plot, Prose, Section, Strip, Table, number, render
from sora.system.files import write_text
from sora.system.terminal import counted

_TEXT = 1_500  # characters of an old caption that are shown


def write_page(path: Path, view: CaptionView) -> None:
    """Write the page to one HTML file."""
    sections = [Section("Totals", _totals(view))]
    sections += [Section("Worst first", [_strip(one) for one in view.worst])] if view.worst else []
    sections += [Section("Without a flag", [_strip(one) for one in view.plain])] if view.plain else []
    sections += [Section("Words", _words(view))] if view.words else []
    sections += [Section("Failures", _failures(view))] if view.failures else []
    sections += [Section("Cost", _cost(view))]
    sections += [Section("Next", [Commands(view.commands)])] if view.commands else []
    lead = f"{counted(view.captioned, 'clip has a new caption', 'clips have new captions')} of {number(view.clips)}"
    lead += f"; {number(view.flagged)} of these {'has' if view.flagged == 1 else 'have'} a flag, which removes nothing."
    write_text(path, render(Page(view.title, lead, sections)))


def _totals(view: CaptionView) -> list[Part]:
    figures = [Figure("with captions", number(view.captioned), f"of {number(view.clips)}")]
    figures += [Figure("with a flag", number(view.flagged)), Figure("without captions", number(view.clips - view.captioned))]
    parts: list[Part] = [Figures(figures)]
    if view.flags:
        rows = [
            (name, view.flags[name], f"{100 * view.flags[name] / view.captioned:.1f} %", FLAGS[name]) for name in FLAGS if view.flags[name]
        ]
        parts.append(Table(("flag", "clips", "share", "what it says"), rows))
    return parts + [Prose(note) for note in view.notes]


def _strip(one: ShownCaption) -> Strip:
    frames = [Picture(jpeg, width, height, f"{time:.1f} s") for time, jpeg, width, height in one.frames]
    before = [(f"before: {who}", _cut(text)) for who, text in one.old] or [("before", "(no caption)")]
    after = [("new, short", one.short), ("new, dense", one.dense)]
    after += [("second pass, dense", one.second)] if one.second else []
    fields = "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in one.structured.items())
    return Strip(one.key, frames, [before, [*after, *([("fields", fields)] if fields else [])]], one.flags)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text):,} characters)"


def _words(view: CaptionView) -> list[Part]:
    rows = [
        (one.captioner, one.kind, len(one.lengths), median(one.lengths), min(one.lengths), max(one.lengths), one.different)
        for one in view.words
    ]
    parts: list[Part] = [Table(("captioner", "kind", "captions", "words, median", "least", "most", "different words"), rows)]
    drawn = [one for one in view.words if len(set(one.lengths)) > 1]
    if drawn:
        histograms = [plots.histogram(one.lengths, across=f"words: {one.captioner[:24]}, {one.kind}") for one in drawn[:8]]
        parts.append(Plot(histograms, "Lengths of captions, by captioner and kind"))
    return parts


def _failures(view: CaptionView) -> list[Part]:
    rows = [(why, clips) for why, clips in sorted(view.failures.items(), key=lambda item: (-item[1], item[0]))]
    more: list[Part] = [Prose(f"The first {FAILED} of them.")] if sum(view.failures.values()) > FAILED else []
    listed = Table(("clip", "why", "attempts"), view.failed)
    return [Table(("cause", "clips"), rows), *more, listed]


def _cost(view: CaptionView) -> list[Part]:
    figures = [Figure("requests", number(view.requests), f"{number(view.attempts)} attempts")]
    figures += [Figure("tokens in", number(view.tokens_in)), Figure("tokens out", number(view.tokens_out))]
    figures += [Figure("cost", number(view.cost), "by price.input and price.output")] if view.cost is not None else []
    each = [number(tokens / max(view.captioned, 1)) for tokens in (view.tokens_in, view.tokens_out)]
    told = f"{each[0]} tokens in and {each[1]} out for each captioned clip, failed attempts included."
    return [Figures(figures), Prose(told)]
