"""Files of scores: which one a path means, and whether several have one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sora.report.tables import as_text

TAKEN = "subject.taken"  # of the subject; no field of the protocol, which several subjects share
MOST = 6  # fields that a message names one by one
MOST_ROWS, LONGEST = 24, 40  # rows in the table of differing fields, and characters of a value


@dataclass(frozen=True)
class Score:
    """One `scores.json`. label: of its row. losses: the held-out loss of each clip, if it was measured. clips: the values of single clips,
    for figures that are means over clips."""

    label: str
    path: Path
    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    n: int
    losses: Mapping[str, float]
    clips: Mapping[str, Mapping[Any, float]]
    step: int | None = None
    subject: Mapping[str, Any] = field(default_factory=dict)


class Unlike(ValueError):
    """Scores have different protocols. table: the differing fields, side by side."""

    def __init__(self, line: str, table: str) -> None:
        super().__init__(line)
        self.table = table


def opened(words: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The places that the words name, with a sweep's folder replaced by its runs, and those of its runs that do not exist.

    Raises ValueError for a word that is no path on the disk, and for a duplicate.
    """
    from sora.config.command_line.sweep import RECORD, recorded, rejoined

    places, missing = [], []
    for word in rejoined(words):
        place = Path(word)
        if not place.exists():
            raise ValueError(f"{place} does not exist, seen from {Path.cwd()}")
        if (place / RECORD).is_file() and not (place / "scores.json").is_file() and not (place / "run.json").is_file():
            runs = [place / name for name in recorded(place)]
            places += [run for run in runs if run.exists()]
            missing += [run for run in runs if not run.exists()]
        else:
            places.append(place)
    twice = [str(place) for number, place in enumerate(places) if place.resolve() in [one.resolve() for one in places[:number]]]
    if twice:
        raise ValueError(f"the same scores twice: {twice[0]}")
    return places, missing


def find(place: Path) -> Path | None:
    """The scores.json that a place means: the file itself, one in the folder, or a run's newest evaluation; None for a run without one."""
    if place.is_file():
        return place
    if (place / "scores.json").is_file():
        return place / "scores.json"
    found = sorted(place.glob("evaluation/**/scores.json"))
    if found:
        return max(found, key=lambda path: (_step(path) or 0, "=" not in path.parent.name, str(path)))  # evaluations of a sweep come last
    if (place / "run.json").is_file():
        return None
    raise ValueError(f"{place} holds no scores.json, and is no run; make one with sora evaluate")


def _step(path: Path) -> int | None:
    """The step of the checkpoint that was scored."""
    from sora.metrics.scored import read_scores

    return (read_scores(path).get("subject") or {}).get("step")


def score_of(label: str, path: Path) -> Score:
    from sora.evaluation.pairing import of_clips
    from sora.metrics.protocol import Protocol
    from sora.metrics.scored import read_scores

    held = read_scores(path)
    try:
        protocol = Protocol.from_json(held["protocol"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds {error}; evaluate again with this one") from None
    if protocol.sha256 != held.get("protocol_sha256"):
        raise ValueError(
            f"{path} was changed by hand: its protocol does not have the hash {str(held.get('protocol_sha256'))[:12]} that it names"
        )
    losses = (held.get("heldout") or {}).get("clips", {})
    try:
        clips = of_clips(held.get("rows") or [])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} was changed by hand: its rows are not those of clips ({error!r})") from None
    return Score(label, path, held["figures"], protocol.to_json(), int(held["n"]), losses, clips, _step(path), held.get("subject") or {})


def labels(places: Sequence[Path]) -> list[str]:
    """Short names of places: their paths without common first and last parts."""
    named = places if all(place.name not in ("", "..") for place in places) else [place.resolve() for place in places]
    parts = [[part for part in place.parts if part != "scores.json"] for place in named]
    while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    while all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) for each in parts]


# ---- protocols


def check_alike(scores: Sequence[Score], differ: Sequence[str]) -> None:
    """Raise Unlike, naming every field, if protocols differ, or clips taken of the same videos do, unless `differ` names the field."""
    from sora.metrics.protocol import allowed

    refuse_unknown(scores, differ)
    if not allowed(TAKEN, differ):
        check_taken(scores)
    wrong = [place for place in fields(scores) if not allowed(place, differ)]
    if not wrong:
        return
    apart = [score for number, score in enumerate(scores) if not any(alike(score, other, wrong) for other in scores[:number])]
    counts = [sum(alike(score, other, wrong) for other in scores) - 1 for score in apart]
    names = [f"{score.label} (and {count} more)" if count else score.label for score, count in zip(apart, counts, strict=True)]
    rows = [row for place in wrong for row in side_by_side(place, [at(score.protocol, place) for score in apart])]
    more = (f"and {len(rows) - MOST_ROWS} more lines", *("" for _ in apart))
    shown = [*rows[:MOST_ROWS], more] if len(rows) > MOST_ROWS else rows
    places = wrong if len(wrong) <= MOST else list(dict.fromkeys(place.partition(".")[0] for place in wrong))
    raise Unlike(
        f"these scores were measured by {len(apart)} different protocols, which differ in {', '.join(places)}; evaluate them alike, or, if "
        f"the difference is what you compare, say so: differ=[{','.join(places)}]",
        as_text(["different", *names], shown),
    )


def refuse_unknown(scores: Sequence[Score], differ: Sequence[str]) -> None:
    """Raise ValueError for a name in `differ` that is no field of these protocols: a user who mistypes one believes that it may differ."""
    from sora.config.words import meant
    from sora.metrics.protocol import places

    known = dict.fromkeys([*(place for score in scores for place in places(score.protocol)), TAKEN])
    if unknown := [name for name in differ if name not in known]:
        apart = ", ".join(fields(scores)) or "none"
        raise ValueError(
            f"differ=[{unknown[0]}]: no field of these protocols is called so{meant(unknown[0], known)}; those that differ here: {apart}; "
            f"whole ones, with all that they hold: {', '.join(place for place in known if '.' not in place)}"
        )


def check_taken(scores: Sequence[Score]) -> None:
    """Raise Unlike for scores of the same videos if different file names led to other clips or to other sets."""
    for number, score in enumerate(scores):
        for other in scores[:number]:
            same = at(score.subject, "videos.fingerprint") is not None and at(score.subject, "videos") == at(other.subject, "videos")
            if same and at(score.subject, "taken") != at(other.subject, "taken"):
                rows = side_by_side(TAKEN, [at(one.subject, "taken") for one in (other, score)])
                raise Unlike(
                    f"{other.label} and {score.label} are scores of the same videos, of which other clips were taken, or in other sets, as "
                    f"the files are called otherwise; call them alike, take all, or say so: differ=[{TAKEN}]",
                    as_text(["different", other.label, score.label], rows),
                )


def fields(scores: Sequence[Score]) -> list[str]:
    """The dotted names of fields in which any protocol differs from the first."""
    from sora.metrics.protocol import differences

    return list(dict.fromkeys(found.place for other in scores[1:] for found in differences(scores[0].protocol, other.protocol)))


def alike(one: Score, two: Score, places: Sequence[str]) -> bool:
    return all(at(one.protocol, place) == at(two.protocol, place) for place in places)


def side_by_side(place: str, values: Sequence[Any]) -> list[tuple[str, ...]]:
    """The table rows of one field: one, or for a mapping such as counts of shapes, one for each key whose values differ."""
    if all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        parts = {key: [value.get(key) for value in values] for key in keys}
        return [row for key, each in parts.items() if any(one != each[0] for one in each) for row in side_by_side(f"{place}: {key}", each)]
    return [(place, *(short(value) for value in values))]


def short(value: Any) -> str:
    """A value in a table: a hash by its first digits, a mapping of counts by its length."""
    if isinstance(value, Mapping) and not all(str(key).isidentifier() for key in value):
        return f"{len(value)} kinds"
    text = "–" if value is None else text_of(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def at(tree: Any, place: str) -> Any:
    for part in place.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def text_of(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
