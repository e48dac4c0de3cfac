"""`-m`: the runs of a command line with several values, and the folder of each.

FOLDER/.sweep.json      the words in which the runs below FOLDER differ, by the name of each run's folder
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from sora.config.command_line.flags import Flags
from sora.config.command_line.grammar import bracketed, cut
from sora.config.command_line.outputs import refuse_shared
from sora.config.compose import Composed, compose, require_all
from sora.gate.forms import Fields, Named, fitting, inside
from sora.gate.forms import text as text_form
from sora.gate.texts import read_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECORD = ".sweep.json"
PATTERNED = "checkpoint"  # its values may be given by a pattern, as in checkpoint=outputs/density/*
PATIENCE = 60.0  # seconds to wait while another sweep writes its words
FUNCTIONS = ("range(", "interval(", "glob(", "sort(", "shuffle(")  # of Hydra's grammar
LONGEST = 200  # bytes of a folder's name; file systems allow 255, and names of files beside it are longer


@dataclass(frozen=True)
class Sweep:
    """The overrides of each run; its output folder, or None if the verb has none; and the words in which it differs from the others,
    without `output=`. named: whether the folders are named by these words."""

    runs: list[list[str]]
    places: list[Path | None]
    words: list[list[str]]
    named: bool = False

    def record(self) -> None:
        """Record in the folders that hold the runs which words distinguish them, beside the records of other sweeps, under a lock."""
        from sora.system.files import write_json
        from sora.system.locks import alone_in

        homes: dict[Path, dict[str, list[str]]] = {}
        for place, words in zip(self.places, self.words, strict=True):
            if place is not None and self.named:
                homes.setdefault(place.parent, {})[place.name] = words
        for folder, runs in homes.items():
            with alone_in(folder, "sweeping into", name=".lock-sweep", patience=PATIENCE):
                write_json(folder / RECORD, {"runs": {**recorded(folder), **runs}})


def recorded(folder: Path) -> dict[str, list[str]]:
    """The recorded words of each run below a folder, by the run's folder name; empty if there was no sweep."""
    if not (folder / RECORD).exists():
        return {}
    form, advice = Fields({"runs": Named([text_form], name=inside)}), "remove it, names of folders are read then"
    try:
        return fitting(read_json(folder / RECORD, within=folder), form, str(folder / RECORD))["runs"]
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None


def split(verb: str, arguments: Sequence[str], folders: Sequence[Path]) -> Sweep:
    """The runs, all composed and checked. Raises ValueError if any of them would be refused.

    Runs with the same output get folders of their own in it, named by their differences: OUTPUT/density=uniform,seed=0. Runs that differ in
    `part` are shares of one job, and write into one output.
    """
    runs = [list(run) for run in product(*(several(argument) for argument in arguments))]
    composed = [compose(verb, run, folders) for run in runs]
    for item in composed:
        require_all(item, verb)
    refuse_shared([item.writes for item in composed])
    words = [[word for word in run if any(word not in other for other in runs) and not word.startswith("output=")] for run in runs]
    shares = [word.startswith("part=") for each in words for word in each]
    if any(shares) and not all(shares):
        raise ValueError("a sweep over part= shares the work of one output, so nothing else may differ; give the other values one by one")
    if any(shares) or not all("output" in item.config for item in composed):
        return Sweep(runs, [None] * len(runs), words)
    return _apart(verb, runs, composed, words)


def several(argument: str) -> list[str]:
    """The words that one word of a sweep stands for, with values as typed; `key=[a,b]` and `key='a,b'` are one value."""
    key, equals, value = argument.partition("=")
    if value.startswith("choice(") and value.endswith(")"):  # its values are taken as typed, too
        value = value.removeprefix("choice(").removesuffix(")")
    if not equals or value.startswith(FUNCTIONS):
        return _by_hydra(argument) if equals else [argument]
    if key == PATTERNED and ("*" in value or "?" in value):
        found = [path for path in glob(value.replace("[", "[[]")) if Path(path).is_dir()]
        if not found:
            raise ValueError(f"{argument}: no folder is called so, seen from {Path.cwd()}")
        return [f"{key}={path}" for path in sorted(found, key=_counted)]
    values = [item.strip() for item in rejoined(cut(value))]
    if opened := next((item for item in values if item[:1] in ("[", "{") and not bracketed(item)), None):
        raise ValueError(f"the sweep cannot be read: nothing closes the bracket of {opened!r} in {argument}; a text stands in quotes")
    if len(values) > 1 and not all(values):
        raise ValueError(f"{argument}: a value between commas is empty")
    return [f"{key}={item}" for item in values]


def rejoined(parts: Sequence[str]) -> list[str]:
    """The parts, in which paths that contained commas are joined again: a folder of a sweep may be density=uniform,seed=0."""
    found, place = [], 0
    while place < len(parts):
        longer = range(len(parts), place + 1, -1) if "=" in parts[place] else ()
        end = next((end for end in longer if _there(",".join(parts[place:end]))), place + 1)
        found.append(",".join(parts[place:end]))
        place = end
    return found


def _there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with an invalid byte
        return False


def _by_hydra(argument: str) -> list[str]:
    """The values of choice(…), range(…) and the like."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
        key = override.get_key_element()
        if not override.is_sweep_override():
            return [f"{key}={override.get_value_element_as_str()}"]
        if override.is_discrete_sweep():
            return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ValueError(f"the sweep cannot be read: {str(error).splitlines()[0]}") from error
    raise ValueError(f"the sweep cannot be read: {argument} has no values to count; name them, as in choice(1,2) or range(1,5)")


def _counted(path: str) -> list[tuple[bool, int, str]]:
    """A sort key by which seed=2 comes before seed=10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path)]


def _apart(verb: str, runs: list[list[str]], composed: Sequence[Composed], words: list[list[str]]) -> Sweep:
    """The runs, each with its own output.

    An evaluation without output= writes into the folder that it scores, so evaluations of several runs are separate already.
    """
    said = [item.config.output for item in composed]
    scored: list[str | None] = [
        item.config.get(PATTERNED) if verb == "evaluate" and item.config.output is None else None for item in composed
    ]
    if len(runs) == 1 or len({str(Path(place)) for place in scored if place}) == len(runs):
        return Sweep(runs, [_place(verb, item.config.output, where) for item, where in zip(composed, scored, strict=True)], words)
    if None not in said and len({str(Path(place)) for place in said}) == len(runs):
        return Sweep(runs, [Path(place) for place in said], words)
    if all(scored):
        words = [[word for word in each if not word.startswith(f"{PATTERNED}=")] for each in words]
    homes = [_place(verb, output, where) for output, where in zip(said, scored, strict=True)]
    homes = [home / "evaluation" if where else home for home, where in zip(homes, scored, strict=True)]
    plain = [home / name_of(each) for home, each in zip(homes, words, strict=True)]
    places = [path.with_name(name_of(each, marked=plain.count(path) > 1)) for path, each in zip(plain, words, strict=True)]
    if twice := [str(place) for place, count in Counter(places).items() if count > 1]:
        raise ValueError(f"two runs of the sweep are one, {twice[0]}: a value stands there twice; leave one out")
    kept = [[word for word in run if not word.startswith("output=")] for run in runs]
    outputs = [[*run, f"output={place}"] for run, place in zip(kept, places, strict=True)]
    return Sweep(outputs, list(places), words, named=True)


def _place(verb: str, output: str | None, scored: str | None) -> Path:
    return Path(output or scored or f"outputs/{verb}")


def name_of(words: Sequence[str], *, marked: bool = False) -> str:
    """The folder name of a run, from the words in which it differs. marked: append a hash of them, if only characters that a name cannot
    have distinguish it; a name that would be too long gets a hash, too."""
    text = ",".join(words)
    name = re.sub(r"[^\w.,=+-]", "_", text)
    mark = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    letters = name.encode(errors="surrogateescape")
    if len(letters) > LONGEST:
        return f"{letters[: LONGEST - 9].decode(errors='ignore')}-{mark}"
    return f"{name}-{mark}" if marked else name


def words_of(place: Path) -> dict[str, str]:
    """The words that distinguish a folder of a sweep, by key: as recorded, else from its name; and those of the run that contains an
    evaluation."""
    found: dict[str, str] = {}
    whole = place.absolute()
    for folder in (*reversed(whole.parents), whole):
        if not folder.name or "=" not in folder.name:
            continue
        words = recorded(folder.parent).get(folder.name) or re.split(r",(?=[\w.@/+~-]+=)", folder.name)
        found |= {key: value for key, equals, value in (word.partition("=") for word in words) if equals}
    return found


def launched(verb: str, flags: Flags, *, run: Callable[[str, list[str]], int]) -> int:
    """Run a sweep through a Hydra launcher plugin (`hydra/launcher=submitit_slurm`), whose files go to outputs/multirun. run: runs a
    command line.

    Hydra gets only the number of each run and the launcher's settings: sora has composed and checked the runs.
    """
    import hydra
    from hydra.errors import HydraException

    theirs = [word for word in flags.overrides if word.startswith("hydra")]
    unfit = [word for word in theirs if not word.startswith(("hydra/launcher=", "hydra.launcher.", "hydra.sweep.dir="))]
    if unfit:
        raise ValueError(f"{unfit[0]} is not settable; of Hydra's settings -m takes hydra/launcher=, hydra.launcher.… and hydra.sweep.dir=")
    sweep = split(verb, [word for word in flags.overrides if word not in theirs], flags.folders)
    sweep.record()
    options = flags.again()

    def job(config: DictConfig) -> None:
        code = run(verb, [*sweep.runs[config.job], *options])
        if code:
            raise SystemExit(code)

    quiet = ["hydra.output_subdir=null", "hydra.job.chdir=false", "hydra/job_logging=none", f"hydra.job.name={verb}"]
    if not any(word.startswith("hydra.sweep.dir=") for word in theirs):
        quiet.append("hydra.sweep.dir=outputs/multirun/${now:%Y-%m-%d_%H-%M-%S}")
    words = [f"sora {verb}", "-m", *quiet, *theirs, f"+job={','.join(str(number) for number in range(len(sweep.runs)))}"]
    try:
        with patch.object(sys, "argv", words), patch.dict(os.environ, HYDRA_FULL_ERROR="1"):
            hydra.main(version_base="1.3", config_path=None, config_name=None)(job)()
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    return 0
