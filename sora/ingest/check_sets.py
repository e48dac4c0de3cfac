"""The part of `sora data check` for what was added to a dataset: sets of captions and of scores, and selections."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sora.data.index.index import Index
from sora.data.index.keyed_sets import CAPTION_SETS, SCORE_SETS, SELECTIONS, SetKind, open_selection
from sora.data.index.writer import Fingerprints
from sora.system.terminal import counted


class SetFindings(Protocol):
    """What a check has found so far, see `sora.ingest.check.Checked`."""

    counts: Counter[str]
    notes: list[str]

    def add(self, kind: str, where: str, reason: str) -> None:
        """Add a fault."""
        ...


def check_sets(index: Index, checked: SetFindings) -> None:
    """Check the sets of captions and of scores, and the selections: each file is whole, says what the manifest says that it does, and is of
    clips that exist; the fingerprints of a selection are those of its clips."""
    for kind in (CAPTION_SETS, SCORE_SETS, SELECTIONS):
        for name in kind.names(index.folder):
            try:
                described = kind.described(index.folder, name, dataset=index.dataset_fingerprint)
                faultless = [_set_file(index, kind, entry, checked) for entry in described["files"]]
                if all(faultless) and kind is SELECTIONS:
                    _selection(index, name, checked)
            except ValueError as error:
                checked.add(kind.prefix, kind.manifest(index.folder, name).name, str(error))


def _set_file(index: Index, kind: SetKind, entry: dict[str, Any], checked: SetFindings) -> bool:
    """Check one file of a set; return whether it is faultless."""
    try:
        table = kind.read(index.folder / entry["file"], entry["sha256"])
        keys = table["key"].to_pylist()
        known = index.files.whole(entry["shard"], ("key",))["key"].to_pylist()
    except (ValueError, IndexError) as error:
        checked.add(kind.prefix, entry["file"], str(error))
        return False
    checked.counts[f"files of {kind.prefix}"] += 1
    wrong = ""
    if strange := sorted(set(keys) - set(known)):
        of_clips = counted(len(strange), "entry is of a clip", "entries are of clips")
        wrong = f"{of_clips} that its shard does not have, such as {strange[0]}"
    elif len(set(keys)) < len(keys):
        wrong = "a clip stands in it more than once"
    elif kind is SELECTIONS and keys != known:
        wrong = "its clips are not all those of its shard, in their order"
    elif kind.content(dict(zip(keys, table[kind.column].to_pylist(), strict=True))) != entry[kind.column]:
        wrong = "its content is not that whose hash the manifest has"
    if wrong:
        checked.add(kind.prefix, entry["file"], wrong)
    return not wrong


def _selection(index: Index, name: str, checked: SetFindings) -> None:
    selection = open_selection(index.folder, name, index.described)
    checked.notes.append(selection.told(np.ones(len(selection.codes), np.bool_)))
    prints = Fingerprints()
    for number in range(len(index.described["shards"])):
        first, last = (int(index.files.starts[place]) for place in (number, number + 1))
        prints.add(index.files.whole(number).filter(pa.array(selection.kept[first:last])))
    if (prints.clips, prints.captions()) != (selection.clips, selection.captions):
        checked.add("selection", SELECTIONS.manifest(index.folder, name).name, "its fingerprints are not those of the clips that it keeps")
