"""Where what a run's configuration names by path lies: from whatever folder one stands in, and after the run or its data have moved.

run.json keeps where the run was begun ("place": its own folder, and the one that relative paths start from), which clips each dataset
held ("datasets": fingerprints), and what it was trained on ("usual": pixels of a frame, frames a second, seconds).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sora import storage
from sora.data.index import DATASET
from sora.training.run import Run

FILES = ("source", "path")  # keys of models on disk, within the nodes that may hold some: a folder, a file, or no path at all


def begun_at(folder: Path, datasets: Iterable[str], usual: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What run.json keeps of a run that begins, or goes on, in `folder`, from the folder that this process stands in."""
    kept = {"place": {"folder": str(Path(folder).resolve()), "from": str(Path.cwd())}}
    known = {named: found for named in datasets if (found := fingerprint(Path(named)))}
    return {**kept, "datasets": known, **({"usual": dict(usual)} if usual else {})}


def fingerprint(folder: Path) -> str | None:
    """Of a dataset's clips; None if the folder holds none."""
    path = folder / DATASET
    described = storage.read_json(path) if path.is_file() else None
    return described.get("fingerprint") if isinstance(described, dict) else None


def place_of(run: Run) -> Mapping[str, str] | None:
    """Where a run was begun, or last went on, as it keeps it; None of one that was begun before runs did."""
    place = run.info.get("place")
    return place if isinstance(place, Mapping) and all(isinstance(place.get(key), str) for key in ("folder", "from")) else None


def candidates(run: Run, named: str) -> list[Path]:
    """The paths that `named` may mean, likeliest first: where it lies beside the run if both have moved together, where it lay when the
    run was begun, then from here, and from every folder above the run."""
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
    """The folder of a dataset that the run is trained on: of its candidates the first with the run's clips, else the first dataset.

    Raises ValueError if there is none, naming where it was looked for.
    """
    known = run.info.get("datasets")
    wanted = known.get(named) if isinstance(known, Mapping) else None
    found = candidates(run, named)
    there = [path for path in found if (path / DATASET).is_file()]
    if not there:
        place = place_of(run)
        seen = f", as seen from {place['from']}" if place else ""
        raise ValueError(
            f"{run.folder} is trained on {named}{seen}, and no dataset is at "
            f"{', '.join(map(str, found[:3]))}; say where it lies now: data.folders=[FOLDER] (the same clips need no resume_allow)"
        )
    return str(next((path for path in there if wanted is None or fingerprint(path) == wanted), there[0]))


def path_of(run: Run, named: str) -> str:
    """A file or folder that the run's configuration names; as it stands if there is none, since many such words are no paths."""
    return next((str(path) for path in candidates(run, named) if path.exists()), named)


def placed(run: Run, node: Any) -> Any:
    """A node of plain values with the models that it names by path where they lie now."""
    if isinstance(node, Mapping):
        return {key: path_of(run, value) if _is_path(key, value) else placed(run, value) for key, value in node.items()}
    return [placed(run, item) for item in node] if isinstance(node, list) else node


def _is_path(key: Any, value: Any) -> bool:
    return key in FILES and isinstance(value, str) and "://" not in value and value.partition(":")[0] != "package" and value != ""
