"""Set scores side by side that one protocol measured; others are refused, with the field that differs.

sora compare A B …        scores.json files, folders that hold one, or runs (their newest evaluation), as a table; what each clip has a
                          score of (held-out losses, reconstructions, adherence) also as its change against the first one's, clip by clip
format=                   text, markdown, latex or csv
differ=[sampling.steps]   fields that may differ on purpose: they become columns
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.configs.compose import Composed

EXAMPLES = (
    "sora compare outputs/one outputs/two",
    "sora compare outputs/one outputs/two outputs/three figures=[frechet,kvd] format=latex",
    "sora compare outputs/one/evaluation/step-00001000 outputs/one/evaluation/step-00002000 output=table.csv format=csv",
)
BARE = ("scores",)  # the key that words without KEY= are values of
# Of all figures, those that say how a model does; the rest of a distance's figures say how sure it is.
HEADLINES = (
    "loss",
    "fvd",
    "frechet",
    "kvd",
    "jedi_formula",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "adherence_all",
)
PAIRED = ("dataset", "measures.loss", "seed")  # fields of a protocol that make losses those of the same clips with the same noise
CHANGE = "loss change, %"  # of the first score's, clip by clip
MOST = 6  # fields that a message tells one by one
ROUGH = ("_low", "_high", "_floor", "_n", "/low", "/high", "/floor")


@dataclass(frozen=True)
class Score:
    """One `scores.json`. label: what its row is called. losses: the held-out loss of each clip, where that was measured; clips: each clip's
    own value of the figures that are means over clips."""

    label: str
    path: Path
    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    n: int
    losses: Mapping[str, float]
    clips: Mapping[str, Mapping[Any, float]]


@dataclass(frozen=True)
class Cell:
    """A figure with its 95 % interval, where it has one; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


def main(composed: Composed) -> None:
    """Read the scores, refuse those of different protocols, and print the table or write it."""
    from sora import storage

    config = composed.config
    if config.format not in FORMATS:
        raise ValueError(f"format={config.format}: choose from {', '.join(FORMATS)}")
    found = read([Path(place) for place in config.scores])
    check_alike(found, tuple(config.differ))
    head, rows = table(found, None if config.figures is None else tuple(config.figures), tuple(config.differ))
    text = FORMATS[config.format](head, rows)
    if config.output is None:
        print(text, end="")
        return
    storage.write_text(Path(config.output), text)
    print(f"the table of {len(found)} scores is in {config.output}")


# ---- reading


def read(places: Sequence[Path]) -> list[Score]:
    """The scores of each place; labels are the parts of the paths in which they differ. Raises ValueError for fewer than two."""
    if len(places) < 2:
        raise ValueError(f"{len(places)} scores are nothing to compare: sora compare A B …, with folders or files of scores")
    paths = [find(place) for place in places]
    if len(set(paths)) != len(paths):
        raise ValueError(f"the same scores twice: {', '.join(map(str, paths))}")
    return [_score(label, path) for label, path in zip(labels(places), paths, strict=True)]


def find(place: Path) -> Path:
    """The scores.json that a place means: itself, one within it, or that of a run's newest evaluation."""
    if place.is_file():
        return place
    if (place / "scores.json").is_file():
        return place / "scores.json"
    newest = sorted(place.glob("evaluation/**/scores.json"))
    if not newest:
        raise ValueError(f"{place} holds no scores.json; make one with sora evaluate")
    return newest[-1]


def _score(label: str, path: Path) -> Score:
    from sora import storage
    from sora.evaluation.pairing import of_clips
    from sora.metrics.protocol import Protocol

    held = storage.read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("figures"), dict) or "protocol" not in held:
        raise ValueError(f"{path} holds no scores of sora evaluate")
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
    return Score(label, path, held["figures"], protocol.to_json(), int(held["n"]), losses, clips)


def labels(places: Sequence[Path]) -> list[str]:
    """Short names of places: their paths without the parts that all begin and all end with."""
    parts = [[part for part in place.parts if part != "scores.json"] for place in places]
    while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    while all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) for each in parts]


def check_alike(scores: Sequence[Score], differ: Sequence[str]) -> None:
    """Raise ValueError, naming every field in which protocols differ, unless `differ` names it."""
    from sora.metrics.protocol import allowed, differences

    first = scores[0]
    for other in scores[1:]:
        wrong = [found for found in differences(first.protocol, other.protocol) if not allowed(found.place, differ)]
        if wrong:
            shown = [str(found) for found in wrong[:MOST]] + ([f"and {len(wrong) - MOST} more"] if len(wrong) > MOST else [])
            places = [found.place for found in wrong]
            places = places if len(places) <= MOST else list(dict.fromkeys(place.partition(".")[0] for place in places))
            raise ValueError(
                f"{first.label} and {other.label} were measured by different protocols: {'; '.join(shown)}. Evaluate them alike, "
                f"or, if the difference is what you compare, say so: differ=[{','.join(places)}]"
            )


# ---- the table


def table(scores: Sequence[Score], figures: Sequence[str] | None, differ: Sequence[str]) -> tuple[list[str], list[list[str | Cell]]]:
    """The heads of the columns and a row for each score: its name, the fields that differ, n, and the figures."""
    from sora.metrics.protocol import differences

    names = columns(scores, figures)
    places = dict.fromkeys(found.place for other in scores[1:] for found in differences(scores[0].protocol, other.protocol))
    changes = {name: [change(scores[0], score, name) for score in scores] for name in names}
    rows: list[list[str | Cell]] = []
    for number, score in enumerate(scores):
        told: list[str | Cell] = [score.label, *(_text(_at(score.protocol, place)) for place in places), str(score.n)]
        for name in names:
            told.append(cell(score.figures, name))
            if any(changes[name]):
                told.append(changes[name][number] or Cell(None))
        rows.append(told)
    heads = [head for name in names for head in ([name, CHANGE if name == "loss" else f"{name} change"] if any(changes[name]) else [name])]
    return ["", *places, "n", *heads], rows


def change(first: Score, other: Score, name: str) -> Cell | None:
    """How much a figure that is a mean over clips changed from the first score's, clip by clip, with its interval; in its own units, and
    the held-out loss in per cent. None for other figures, where the clips are not the same, or fewer than three."""
    if name == "loss":
        return loss_change(first, other)
    from sora.evaluation.pairing import alike

    ours, theirs = first.clips.get(name, {}), other.clips.get(name, {})
    shared = [clip for clip in ours if clip in theirs]
    same = all(_at(first.protocol, place) == _at(other.protocol, place) for place in alike(name))
    if first is other or not same or len(shared) < 3 or len(shared) < min(len(ours), len(theirs)):
        return None
    import torch

    from sora.metrics.paired import paired_difference

    one, two = (torch.tensor([side[clip] for clip in shared], dtype=torch.float64) for side in (ours, theirs))
    found = paired_difference(one, two)
    return Cell(found.difference, found.low, found.high)


def loss_change(first: Score, other: Score) -> Cell | None:
    """The change of the held-out loss in per cent of the first one's, clip by clip, with its interval.

    None where the two are not of the same clips with the same noise at the same levels, or of fewer than three of them.
    """
    shared = [name for name in first.losses if name in other.losses]
    same = all(_at(first.protocol, place) == _at(other.protocol, place) for place in PAIRED)
    if first is other or not same or len(shared) < 3:
        return None
    import torch

    from sora.metrics.paired import paired_change

    one, two = (torch.tensor([side.losses[name] for name in shared], dtype=torch.float64) for side in (first, other))
    found = paired_change(one, two)
    return Cell(100 * found.change, 100 * found.low, 100 * found.high)


def columns(scores: Sequence[Score], figures: Sequence[str] | None) -> list[str]:
    """The figures to show: those asked for, by name or by the beginning of one; or the headlines. Long names stand for short ones.

    Raises ValueError for one that no score has.
    """
    every = list(dict.fromkeys(name for score in scores for name in score.figures))
    long = {bare(name.partition("/")[0]) for name in every if "/" in name}
    once = [
        name for name in every if "/" in name or not {name, name.partition("_")[0], name.rpartition("_vae_")[2].partition("_")[0]} & long
    ]
    main = [name for name in once if not name.endswith(ROUGH) and name.count("/") < 2]
    if figures is None:
        return [name for name in main if headline(name)] or main
    found = []
    for word in figures:
        near = [name for name in main if name.partition("/")[0] == word] or [name for name in every if name == word]
        if not near:
            from sora.configs.words import listed, meant

            raise ValueError(f"figures=[{word}]: no score has it{meant(word, every)}; they have {listed(every)}")
        found += near
    return list(dict.fromkeys(found))


def bare(name: str) -> str:
    """A figure's name without the dataset that a VAE's begin with."""
    return name.rpartition("_vae_")[2]


def headline(name: str) -> bool:
    """Whether a figure says how a model does."""
    word = bare(name.partition("/")[0])
    return word in HEADLINES or word in ("psnr", "ssim")


def cell(figures: Mapping[str, float], name: str) -> Cell:
    between = "/" if "/" in name else "_"
    return Cell(figures.get(name), figures.get(f"{name}{between}low"), figures.get(f"{name}{between}high"))


def _at(tree: Any, place: str) -> Any:
    for part in place.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def number(value: float | None) -> str:
    """Four figures, and no more than are known."""
    return "–" if value is None else f"{value:.4g}"


def told(found: str | Cell) -> str:
    if isinstance(found, str):
        return found
    interval = "" if found.low is None or found.high is None else f" [{number(found.low)}, {number(found.high)}]"
    return f"{number(found.value)}{interval}"


def as_text(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Columns side by side."""
    lines = [list(head), *([told(found) for found in row] for row in rows)]
    wide = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "".join("  ".join(text.ljust(width) for text, width in zip(line, wide, strict=True)).rstrip() + "\n" for line in lines)


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    lines = [list(head), ["---"] * len(head), *([told(found) for found in row] for row in rows)]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """A tabular of the package booktabs."""
    marks = str.maketrans({mark: f"\\{mark}" for mark in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"})

    def line(texts: Sequence[str]) -> str:
        return " & ".join(text.translate(marks).replace("–", "--") for text in texts) + r" \\" + "\n"

    body = "".join(line([told(found) for found in row]) for row in rows)
    shape = "l" + "r" * (len(head) - 1)
    return f"\\begin{{tabular}}{{{shape}}}\n\\toprule\n{line(head)}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def as_csv(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Every digit; intervals as columns of their own."""
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    cells = [place for place in range(len(head)) if any(isinstance(row[place], Cell) and row[place].low is not None for row in rows)]
    writer.writerow(
        [text for place, name in enumerate(head) for text in ([name, f"{name} low", f"{name} high"] if place in cells else [name])]
    )
    for row in rows:
        values: list[Any] = []
        for place, found in enumerate(row):
            if isinstance(found, Cell):
                values += [found.value, found.low, found.high] if place in cells else [found.value]
            else:
                values.append(found)
        writer.writerow(values)
    return file.getvalue()


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str | Cell]]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}

if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("compare"))
