"""What a check on a GPU found, written as it is found: a run that is cut off at any moment has told what it knew.

    FILE.json   {"figures": {name: number}, "sections": {name: {"status", "seconds", "why", "rows", "commit", "when"}},
                "machine", "versions", "device", "commit", "when"}; a section's own commit and when are of the check that ran it
    FILE.log    a line for everything that was reported, in order

A section's status is "not run", "running", "ran", "failed" (an exception, told in `why`) or "cut off" (a clock, its own or the whole one).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sora.system.files import write_json

NOT_RUN, RUNNING, RAN, FAILED, CUT = "not run", "running", "ran", "failed", "cut off"
LEAST = 5.0  # seconds under which no section begins
PATIENT = 4  # so many times as long at toy sizes: a suite runs on busy machines, and figures say nothing there


@dataclass(frozen=True)
class Place:
    """Where a section runs and at which sizes. device: "cuda" or "cpu". toy: small sizes, at which figures say nothing.

    memory: of the device, in GiB.
    """

    device: str
    toy: bool
    folder: Path
    memory: float = math.inf


@dataclass(frozen=True)
class Report:
    """One thing that a section found: numbers by name (figures), or a row of a table."""

    figures: Mapping[str, float | None] = field(default_factory=dict)
    row: Mapping[str, Any] | None = None
    note: str = ""


Check = Callable[[Place], Iterator[Report]]


@dataclass(frozen=True)
class Section:
    """A part of the check. seconds: its own clock. memory: of the device in GiB, that it needs at its real sizes.

    needs: what must hold where it runs, as a function that returns why it does not.
    """

    name: str
    check: Check
    seconds: float
    memory: float = 0.0
    needs: Callable[[Place], str | None] = lambda _: None

    def lacks(self, place: Place) -> str | None:
        """Why it cannot run there; None if it can."""
        if not place.toy and self.memory > place.memory:
            return f"it needs {self.memory:g} GiB of memory on the device, which has {place.memory:.0f}"
        return self.needs(place)


class Cut(Exception):
    """A section's clock ran out."""


class Runner(Protocol):
    """Runs a section and yields its reports; raises `Cut` when `seconds` are over, and whatever the section raises."""

    def __call__(self, section: Section, place: Place, *, seconds: float) -> Iterator[Report]: ...


class Record:
    """The file. Every change is written at once, whole, under the file's name. keep: what an earlier file says of other sections."""

    def __init__(
        self,
        path: Path,
        *,
        about: Mapping[str, Any],
        sections: Sequence[Section],
        keep: bool = False,
        echo: Callable[[str], None] = print,
    ) -> None:
        self.path, self.echo = path, echo
        entries = {section.name: {"status": NOT_RUN, "seconds": 0.0, "why": "", "rows": []} for section in sections}
        self.data: dict[str, Any] = {"figures": {}, "sections": entries, **about}
        self.begun = {"commit": about.get("commit", ""), "when": about.get("when", "")}
        kept = keep and path.is_file()
        if kept:
            earlier = before(path, about)
            self.data["figures"] |= earlier["figures"]
            self.data["sections"] |= {name: entry for name, entry in earlier["sections"].items() if name in entries}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.log = open(path.with_suffix(".log"), "a" if kept else "w", encoding="utf-8")  # noqa: SIM115  open as long as the record is
        self.write()

    def write(self) -> None:
        write_json(self.path, self.data)

    def tell(self, line: str) -> None:
        self.log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self.log.flush()
        self.echo(line)

    def add(self, section: str, report: Report) -> None:
        """Keep what a section found; a figure's name begins with that of its section."""
        named = {f"{section}_{name}": value for name, value in report.figures.items()}
        self.data["figures"] |= named
        if report.row is not None:
            self.data["sections"][section]["rows"].append(dict(report.row))
        said = [f"{name} {'null' if value is None else f'{value:.4g}'}" for name, value in named.items()]
        told = [*said, *([json.dumps(report.row)] if report.row is not None else []), *([report.note] if report.note else [])]
        self.write()
        self.tell(f"  {', '.join(told)}")

    def forget(self, section: str) -> None:
        """Drop what an earlier run found of a section."""
        self.data["figures"] = {name: value for name, value in self.data["figures"].items() if not name.startswith(f"{section}_")}
        self.data["sections"][section]["rows"] = []

    def mark(self, section: str, status: str, *, seconds: float = 0.0, why: str = "") -> None:
        self.data["sections"][section] |= {"status": status, "seconds": round(seconds, 1), "why": why, **self.begun}
        self.write()
        self.tell(f"{section}: {status}{f' ({why})' if why else ''}{f' after {seconds:.1f} s' if seconds else ''}")


def before(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier check of the same device and versions found.

    Raises:
        ValueError: the file is no such record.
    """
    other = "name another output=…, or leave only= out and run all sections anew"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        named = {name: earlier[name] for name in ("device", "versions") if name in about}
        _ = earlier["figures"].items(), earlier["sections"].items()
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise ValueError(f"{path} is no record of an earlier check, to which only= could add; {other}") from None
    for name, was in named.items():
        if was != about[name]:
            raise ValueError(f"{path} is of another {name.removesuffix('s')}, {was}, and here is {about[name]}; {other}")
    return earlier


def run(
    sections: Sequence[Section],
    place: Place,
    record: Record,
    *,
    minutes: float,
    runner: Runner,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the sections in order, each within its own clock and the whole one; failures are recorded and passed over."""
    end = clock() + 60 * minutes
    for section in sections:
        begin = clock()
        if end - begin < LEAST:
            record.mark(section.name, NOT_RUN, why=f"the {minutes:g} minutes were over")
            continue
        if why := section.lacks(place):
            record.mark(section.name, NOT_RUN, why=why)
            continue
        record.forget(section.name)
        record.mark(section.name, RUNNING)
        seconds = min(section.seconds * (PATIENT if place.toy else 1), end - begin)
        try:
            for report in runner(section, place, seconds=seconds):
                record.add(section.name, report)
        except Cut:
            record.mark(section.name, CUT, seconds=clock() - begin, why=f"its {seconds:.0f} s were over")
        except Exception as error:
            record.mark(section.name, FAILED, seconds=clock() - begin, why=f"{type(error).__name__}: {error}"[:2000])
        else:
            record.mark(section.name, RAN, seconds=clock() - begin)
