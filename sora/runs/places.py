"""Resolves the paths in a run's configuration, from whatever folder a command runs in, and after the run or its data have moved.

run.json keeps the run's folder and the folder that relative paths start from ("place"), a fingerprint of the clips of each dataset
("datasets"), and the usual clip of the training data ("usual": pixels of a frame, frames per second, seconds).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora.data.index.index import DATASET
from sora.gate import trust
from sora.runs.run import Run
from sora.system import files as storage

FILES = ("source", "path")  # keys of models on disk, within the nodes that may hold some: a folder, a file, or no path at all


def begun_at(folder: Path, datasets: Iterable[str], usual: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The entries of run.json about a run that starts or continues in `folder`: paths are relative to this process's working directory."""
    kept = {"place": {"folder": str(Path(folder).resolve()), "from": str(Path.cwd())}}
    known = {named: found for named in datasets if (found := fingerprint(Path(named)))}
    return {**kept, "datasets": known, **({"usual": dict(usual)} if usual else {})}


def fingerprint(folder: Path) -> str | None:
    """The fingerprint of a dataset's clips; None if the folder holds no dataset."""
    path = folder / DATASET
    described = storage.read_json(path) if path.is_file() else None
    return described.get("fingerprint") if isinstance(described, dict) else None


def place_of(run: Run) -> Mapping[str, str] | None:
    """The folders of "place" in run.json, from when the run last started or continued; None if an older version wrote it."""
    place = run.info.get("place")
    return place if isinstance(place, Mapping) and all(isinstance(place.get(key), str) for key in ("folder", "from")) else None


def candidates(run: Run, named: str) -> list[Path]:
    """The paths that `named` may mean, likeliest first: where it lies if it moved together with the run, where it lay when the run started,
    in the working directory, and in every folder above the run."""
    now, place = run.folder.resolve(), place_of(run)
    found: list[str | Path] = []
    if place is not None:
        then = os.path.join(place["from"], named)
        found = [now / os.path.relpath(then, place["folder"]), then]
    found += [Path.cwd() / named, *(above / named for above in now.parents)]
    if place is None and os.path.isabs(named) and os.path.isabs(output := str(run.config.get("output"))):
        found.append(now / os.path.relpath(named, output))
    return list(dict.fromkeys(Path(os.path.normpath(path)) for path in found))


def dataset_of(run: Run, named: str) -> str:
    """The folder of a dataset that the run trains on: the first candidate with the same clips, else the first that is a dataset.

    Raises ValueError if no candidate is a dataset (the message lists where it looked), or if the run may not read it (see `Run.may_read`).
    """
    known = run.info.get("datasets")
    wanted = known.get(named) if isinstance(known, Mapping) else None
    found = candidates(run, named)
    seen = [path for path in found if (path / DATASET).is_file()]
    there = [path for path in seen if run.may_read(path)]
    if seen and not there:
        raise foreign(run, "data.folders", named, seen, say=f"data.folders=[{seen[0]}]")
    if not there:
        place = place_of(run)
        seen = f", as seen from {place['from']}" if place else ""
        raise ValueError(
            f"{run.folder} is trained on {named}{seen}, and no dataset is at "
            f"{', '.join(map(str, found[:3]))}; say where it lies now: data.folders=[FOLDER] (the same clips need no resume_allow)"
        )
    return str(next((path for path in there if wanted is None or fingerprint(path) == wanted), there[0]))


def path_of(run: Run, key: str, named: str) -> str:
    """The path of a file or folder that the run's configuration names at `key`; `named` itself if none exists, since many such words are no
    paths.

    Raises:
        ValueError: there is one, and the run may not read it (see `Run.may_read`).
    """
    there = [path for path in candidates(run, named) if path.exists()]
    if (found := next((path for path in there if run.may_read(path)), None)) is not None:
        return str(found)
    if there:
        raise foreign(run, key, named, there)
    return named


def foreign(run: Run, key: str, named: str, there: Sequence[Path], *, say: str = "") -> ValueError:
    """The error for a run that names a path outside its folder which it may not read. say: command-line words that name the path."""
    choices = [*([f"say where it lies: {say}"] if say else []), f"allow it: {trust.words(there[0])}"]
    return ValueError(
        f"{run.config_file} names {key}={named}, which lies outside the run, and no command of yours wrote that configuration, so it is "
        f"not read; {', or '.join(choices)} (or all that this run names: {trust.words(run.folder)})"
    )


def placed(run: Run, node: Any, key: str = "", *, here: Callable[[str, Any], bool] = lambda key, path: False) -> Any:
    """A copy of a node of plain values at `key`, in which the paths of models are replaced by the paths where the models lie now.

    here: returns whether the command line named this existing path at this key, relative to the working directory; it is not replaced.
    """
    if isinstance(node, Mapping):
        found = {}
        for name, value in node.items():
            at = f"{key}.{name}".lstrip(".")
            mine = _is_path(name, value) and not here(at, value)
            found[name] = path_of(run, at, value) if mine else placed(run, value, at, here=here)
        return found
    return [placed(run, item, key, here=here) for item in node] if isinstance(node, list) else node


def _is_path(key: Any, value: Any) -> bool:
    return key in FILES and isinstance(value, str) and "://" not in value and value.partition(":")[0] != "package" and value != ""
