"""Write the page of a run, at any time, or of several runs or folders of samples side by side.

sora report RUN           RUN/report.html: loss, learning rate and throughput, what was measured, samples over steps, where the time
                          went, data, and what comes next; of a run that still trains, as it stands
sora report RUN watch=30  writes it again every 30 seconds until the run is whole, and the page loads itself anew
sora report A B …         several runs, folders of samples, or the folder of a sweep: their table and their samples, on one page
sora report SCORES        the page of an evaluation, written again from its scores.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.config.compose import Composed
    from sora.report.page import Page, Part, Section
    from sora.report.trained import Trained

EXAMPLES = (
    "sora report outputs/dit",
    "sora report outputs/dit watch=30",
    "sora report outputs/density output=density.html",
)
BARE = ("place",)  # the key that words without KEY= are values of
PAGE = "report.html"


def main(composed: Composed) -> None:
    """Write the page, and say where it is; with watch=, again and again until the run is whole."""
    import time

    from sora.report.scores import opened
    from sora.report.trained import is_run
    from sora.system.files import refuse_read_only

    config = composed.config
    if config.watch is not None and not config.watch >= 1:
        raise ValueError(f"watch={config.watch}: give the seconds between two pages, 1 or more")
    if config.clips < 1:
        raise ValueError(f"clips={config.clips}: give 1 or more")
    places, _ = opened([str(place) for place in config.place])
    if not places:
        raise ValueError("none of these runs has begun")
    places = [place.parent if place.name == "scores.json" else place for place in places]
    output = Path(config.output) if config.output is not None else home_of([str(place) for place in config.place]) / PAGE
    if config.output is None and len(places) > 1 and any((output.parent / name).is_file() for name in ("scores.json", "run.json")):
        raise ValueError(f"{output} is the page of {output.parent} itself; name one for these: output=FILE.html")
    if output.is_dir():
        raise ValueError(f"output={output} is a folder; name a file")
    refuse_read_only(output, f"the page {output}", advice="name another place for it with output=FILE.html")
    if config.watch is not None and not (len(places) == 1 and is_run(places[0])):
        raise ValueError("watch= follows one run; name one")
    if "clips" in composed.said and len(places) == 1 and is_scored(places[0]):
        raise ValueError(f"clips={config.clips} has no effect: {places[0]} shows the clips that its evaluation kept (keep=); leave it out")
    while True:
        again = write(places, output, most=config.clips, watch=config.watch)
        print(output.resolve(), flush=True)
        if not again:
            return
        time.sleep(float(config.watch or 0))


def is_scored(place: Path) -> bool:
    """Whether a place is an evaluation's, whose page is of its scores."""
    from sora.report.trained import is_run

    return (place / "scores.json").is_file() and not is_run(place)


def home_of(words: Sequence[str]) -> Path:
    """Where the page lies: in the one folder that was named, else beside what was named first."""
    first = Path(words[0])
    return first if len(words) == 1 and first.is_dir() else first.absolute().parent


def write(places: Sequence[Path], output: Path, *, most: int, watch: int | float | None) -> bool:
    """Write the page; whether it is to be written again."""
    from sora.report import evaluation
    from sora.report.page import Page, render
    from sora.report.trained import is_run, trained
    from sora.system.files import write_text

    if len(places) == 1 and is_scored(places[0]):
        evaluation.write_page(places[0], output)
        return False
    if len(places) > 1 or not is_run(places[0]):
        write_text(output, render(several(places, most=most)))
        return False
    run = trained(places[0])
    again = round(watch) if watch is not None and not run.finished else None
    sections = parts_of(run, output, most=most)
    stands = "is whole" if run.finished else f"stands at step {run.step} of {run.steps}"
    lead = f"{KINDS.get(str(run.info.get('kind')), 'A run')} in {run.folder}, which {stands}. Code {_code(run)}."
    write_text(output, render(Page(run.folder.resolve().name, lead, sections, again)))
    return again is not None


KINDS = {"vae": "The training of a VAE", "diffusion": "The training of a text-to-video model"}
KINDS |= {"captioner": "The training of a captioner"}


def parts_of(run: Trained, output: Path, *, most: int) -> list[Section]:
    """The sections of a run's page."""
    from sora.config.command_line.commands import command
    from sora.config.command_line.following import after_diffusion
    from sora.config.own_runs import needed
    from sora.data.loading.quarantine import LINE
    from sora.report import run as page
    from sora.report.page import Folded, Table
    from sora.runs.jsonl import read
    from sora.training.logging.goodput import totals

    spent = [dict(line) for line in run.spent]
    account = totals(spent) if spent else None
    goodput = account["goodput"] if account else None
    flat, held = _flat(run.config), datasets(run)
    parts: dict[str, Sequence[Part]] = {
        "Where it stands": [page.headline(step=run.step, steps=run.steps, lines=run.lines, measured=run.measured, goodput=goodput)],
        "Samples over steps": page.sample_parts(sample_folders(run.folder), most=most),
        "Curves": page.curves(run.lines),
        "Measured while training": page.measured_parts(run.measured),
        "Where the time went": page.time_parts(spent, account),
        "Data": page.data_parts(held, run.info.get("depends") or {}, len(read(run.folder / "quarantine.jsonl", LINE))),
        "Events": page.event_parts(run.events),
        "Configuration": [Folded(counted(len(flat), "value"), [Table(["Key", "Value"], flat)])],
    }
    data = held[0][0] if held and held[0][1] is not None else "FOLDER"
    own = needed(run.info)
    follow = [] if run.finished else [command("train", resume=run.folder, **own), command("report", run.folder, watch=30)]
    if run.info.get("kind") == "diffusion":
        follow.append(after_diffusion(run.folder, **own))
    follow.append(command("evaluate", checkpoint=run.folder, data=data, **own))
    return page.sections(parts, links=links(run.folder, output), commands=follow)


def several(places: Sequence[Path], *, most: int) -> Page:
    """The page of several runs or folders of samples: their table, then the samples of each."""
    from sora.report.comparison import board
    from sora.report.page import Page, Prose, Section, Table, VideoGrid
    from sora.report.run import samples_of
    from sora.report.scores import labels
    from sora.report.tables import told
    from sora.report.trained import is_run

    names, sections, why = labels(places), [], ""
    try:
        made = board([str(place) for place in places], figures=None, differ=[], over=("seed",))
        rows = [[told(cell) for cell in row] for row in made.rows]
        sections.append(Section("Figures", [Table(made.head, rows), *(Prose(note) for note in made.notes)]))
    except ValueError as error:  # folders of samples have no figures
        why = str(error)
        if any(is_run(place) for place in places):
            sections.append(Section("Figures", [Prose(f"No table: {error}.")]))
    for name, place in zip(names, places, strict=True):
        shown = max(sample_folders(place), default=(0, place))[1]
        if clips := samples_of(shown, most=most):
            sections.append(Section(name, [VideoGrid(clips)]))
        elif not is_run(place) and not any(place.glob("**/scores.json")):
            raise ValueError(f"{place} holds no run, no scores and no samples that could be shown")
    if not sections:
        raise ValueError(why)
    return Page(f"{len(places)} side by side" if len(places) > 1 else names[0], ", ".join(names), sections)


def sample_folders(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the samples of a run's checkpoints, made while it trained or after; of averaged weights where there are both."""
    import re

    found: dict[int, Path] = {}
    for folder in sorted(run.glob("samples/step-*")):
        told = re.match(r"step-(\d+)", folder.name)
        if told and (int(told[1]) not in found or folder.name.endswith("-ema")) and any(folder.glob("*.mp4")):
            found[int(told[1])] = folder
    return sorted(found.items())


def datasets(run: Trained) -> list[tuple[str, dict[str, Any] | None]]:
    """The datasets of a run, where they lie now, with what their dataset.json says; None for those that are not to be found from here, or
    that another user's run names outside its folder."""
    import os

    from sora.data.index.index import describe
    from sora.runs.places import dataset_of
    from sora.runs.run import open_run

    found = []
    for named in map(str, run.config.get("data", {}).get("folders") or []):
        try:
            place = dataset_of(open_run(run.folder), named)
            found.append((named if place == os.path.abspath(named) else place, describe(Path(place))))
        except (ValueError, OSError):
            found.append((named, None))
    return found


def links(run: Path, output: Path) -> list[tuple[str, str]]:
    """The pages of a run's evaluations, and its files, relative to where the page lies."""
    import os

    here = output.absolute().parent
    pages = [(f"scores: {path.parent.name}", path) for path in sorted(run.glob("evaluation/*/report.html"))]
    files = [(name, run / name) for name in ("config.yaml", "metrics.jsonl", "evaluation.jsonl", "goodput.jsonl", "events.jsonl")]
    return [(text, Path(os.path.relpath(path.absolute(), here)).as_posix()) for text, path in [*pages, *files] if path.is_file()]


def _flat(node: object, place: str = "") -> list[list[str]]:
    if isinstance(node, dict) and node:
        return [row for key, value in node.items() for row in _flat(value, f"{place}.{key}" if place else str(key))]
    return [[place, str(node)]]


def _code(run: Trained) -> str:
    code = run.info.get("code") or {}
    return ", ".join(f"{name} {code[name]}" for name in ("sora", "commit", "torch") if code.get(name)) or "unknown"


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("report"))
