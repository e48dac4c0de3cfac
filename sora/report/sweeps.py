"""The end of a sweep: the table of its runs, and the commands to show it again or to continue from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sora.config.command_line.sweep import Sweep

COMPARED = ("train", "evaluate")


def ended(verb: str, sweep: Sweep) -> list[str]:
    """The last lines of a sweep, whether or not its runs succeeded; none for verbs without results to compare."""
    from sora.config.command_line.sweep import PATTERNED
    from sora.report.comparison import board
    from sora.report.scores import Unlike, fields, find, score_of
    from sora.report.tables import as_text

    if verb not in COMPARED or len(sweep.runs) < 2:
        return later(verb, sweep)
    there = [str(place) for place in sweep.places if place is not None and place.exists()]
    if not there:
        return []
    shown, differ = _meant(sweep), []
    try:
        if verb == "evaluate" and any(not word.startswith(f"{PATTERNED}=") for words in sweep.words for word in words):
            # Protocol fields that the command line swept are meant to differ.
            differ = fields([score_of(place, path) for place in there if (path := find(Path(place))) is not None])
        made = board([str(place) for place in shown] if _all_there(shown) else there, figures=None, differ=differ, over=("seed",))
    except Unlike as unlike:
        return ["", unlike.table, str(unlike)]
    except ValueError as error:
        return ["", f"no table of these runs: {error}"]
    return ["", as_text(made.head, made.rows).rstrip("\n"), *made.notes, *_after(verb, shown, there, differ)]


def later(verb: str, sweep: Sweep) -> list[str]:
    """The commands that show the results of a sweep once there are any."""
    from sora.config.command_line.commands import command

    shown = _meant(sweep)
    if not shown or len(sweep.runs) < 2:
        return []
    if verb in COMPARED:
        return [f"their table, also while they run: {command('compare', *shown)}"]
    return [f"all of them on one page: {command('report', *shown)}"] if verb == "sample" else []


def _after(verb: str, shown: Sequence[Path], there: Sequence[str], differ: Sequence[str]) -> list[str]:
    from sora.config.command_line.commands import command
    from sora.config.own_runs import needed_by

    more = [f"differ=[{','.join(dict.fromkeys(place.partition('.')[0] for place in differ))}]"] if differ else []
    lines = [f"this table again: {command('compare', *shown, *more)}"]
    if verb != "train":
        return lines
    homes = {Path(place).parent for place in there}
    every = f"{homes.pop()}/*" if len(homes) == 1 and [str(path) for path in shown] != there else ",".join(there)
    return [*lines, f"scored alike: {command('evaluate', '-m', checkpoint=every, data=_data(there), **needed_by(Path(there[0])))}"]


def _data(there: Sequence[str]) -> str:
    """The dataset that all runs trained on, if it is the same."""
    from sora.report.trained import is_run, trained

    each = [trained(Path(place)).config.get("data", {}).get("folders") or [] for place in there if is_run(Path(place))]
    alike = each and all(folders == each[0] for folders in each)
    return str(each[0][0]) if alike and len(each[0]) == 1 else "FOLDER"


def _meant(sweep: Sweep) -> list[Path]:
    """The shortest list of paths that names all places of a sweep: the folder that holds just these, or every path."""
    from sora.config.command_line.sweep import recorded

    places = [place for place in sweep.places if place is not None]
    homes = {place.parent for place in places}
    if len(homes) == 1 and set(recorded(next(iter(homes)))) == {place.name for place in places}:
        return [next(iter(homes))]
    return places


def _all_there(places: Sequence[Path]) -> bool:
    return all(place.exists() for place in places)
