"""The table of `sora compare`: scores of one protocol side by side, or the metrics of runs while they trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sora.metrics.scored import of_motion
from sora.report.grouping import Board, RunEntry
from sora.report.scores import Score, at, check_alike, fields, find, labels, opened, score_of, short, text_of
from sora.report.tables import Cell
from sora.system.terminal import counted

# Figures that measure a model; a distance's other figures tell its uncertainty.
HEADLINES = (
    "loss",
    "fvd",
    "frechet",
    "kvd",
    "motion_frechet",
    "motion_kvd",
    "fvmd_lite",
    "jedi_formula",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "adherence_all",
    "continuation_psnr",
    "continuation_ssim",
    "continuation_spatiotemporal_iou",
)
PAIRED = ("dataset", "measures.loss", "seed")  # fields that must agree for losses on the same clips and noise
CHANGE = "loss change, %"  # relative to the first score, clip by clip
ROUGH = ("_low", "_high", "_floor", "_n", "_p", "/low", "/high", "/floor", "/p")


def board(words: Sequence[str], *, figures: Sequence[str] | None, differ: Sequence[str], over: Sequence[str], asked: bool = False) -> Board:
    """The table of all places: of their scores if any has some, else of the metrics of runs while they trained.

    asked: the user named the keys in `over`, so a key that no run was swept by raises ValueError.
    """
    from sora.config.command_line.sweep import words_of
    from sora.report.grouping import arranged

    places, missing = opened(words)
    if len(places) + len(missing) < 2:
        few = counted(len(places), "score is", "scores are")
        raise ValueError(f"{few} nothing to compare: sora compare A B …, with folders or files of scores, or runs")
    if not places:
        raise ValueError(f"{' '.join(words)}: none of the runs of this sweep ({len(missing)}) has begun")
    names = labels([*places, *missing])
    paths = [find(place) for place in places]
    if same := [place for number, (place, path) in enumerate(zip(places, paths, strict=True)) if path and path in paths[:number]]:
        raise ValueError(f"the same scores twice: {same[0]} means {find(same[0])}, which another place means, too")
    if asked:
        refuse_unswept(over, [words_of(place) for place in (*places, *missing)])
    if not any(paths):
        if differ:
            raise ValueError(f"differ=[{','.join(differ)}] has no effect: it names fields of scores, and none of these runs has scores")
        entries, notes = of_training(places, names[: len(places)], figures)
    else:
        entries, notes = of_scores(places, names[: len(places)], paths, figures, differ)
    gone = zip(names[len(places) :], missing, strict=True)
    entries += [RunEntry(name, words_of(place), {}, {}, "it is not there: the run has not begun") for name, place in gone]
    found = arranged(entries, over)
    return Board(found.head, found.rows, [*found.notes, *notes])


def refuse_unswept(over: Sequence[str], words: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError for a key in `over` by which none of these runs was swept."""
    from sora.config.words import listed, meant

    swept = dict.fromkeys(key for each in words for key in each)
    if unknown := [name for name in over if name not in swept]:
        raise ValueError(f"over=[{unknown[0]}]: no sweep made these by that word{meant(unknown[0], swept)}; swept words: {listed(swept)}")


# ---- the tables


def of_scores(
    places: Sequence[Path], names: Sequence[str], paths: Sequence[Path | None], wanted: Sequence[str] | None, differ: Sequence[str]
) -> tuple[list[RunEntry], list[str]]:
    """A row for each place, with its figures and the protocol fields that differ, and notes. Places without scores say so."""
    from sora.config.command_line.commands import command
    from sora.config.command_line.sweep import words_of
    from sora.config.own_runs import needed_by

    scores = {name: score_of(name, path) for name, path in zip(names, paths, strict=True) if path is not None}
    every = list(scores.values())
    check_alike(every, differ)
    shown, apart, steps = columns(every, wanted), fields(every), {score.step for score in every}
    entries = []
    for place, name in zip(places, names, strict=True):
        if name not in scores:
            lacks = f"it has no scores; {command('evaluate', checkpoint=place, data='FOLDER', **needed_by(place))}"
            entries.append(RunEntry(name, words_of(place), {}, {}, lacks))
            continue
        score = scores[name]
        texts = {field: short(at(score.protocol, field)) for field in apart}
        texts |= ({"step": text_of(score.step)} if len(steps) > 1 else {}) | {"n": str(score.n)}
        entries.append(RunEntry(name, words_of(place), texts, cells_of(every, score, shown)))
    notes = [f"beware: scores of different steps, {', '.join(sorted(map(text_of, steps)))}"] if len(steps) > 1 else []
    return entries, notes


def cells_of(scores: Sequence[Score], score: Score, names: Sequence[str]) -> dict[str, Cell]:
    """The figures of one score, each with its change from the first score if there is one."""
    found: dict[str, Cell] = {}
    for name in names:
        found[name] = cell(score.figures, name)
        if any(change(scores[0], other, name) for other in scores):
            found[CHANGE if name == "loss" else f"{name} change"] = change(scores[0], score, name) or Cell(None)
    return found


def of_training(places: Sequence[Path], names: Sequence[str], wanted: Sequence[str] | None) -> tuple[list[RunEntry], list[str]]:
    """A row for each run, with its metrics while it trained, and notes."""
    from sora.config.command_line.commands import command
    from sora.config.command_line.sweep import words_of
    from sora.config.own_runs import needed
    from sora.report.trained import trained, unlike

    runs = [trained(place) for place in places]
    if kinds := {str(run.info.get("kind")) for run in runs if len({one.info.get("kind") for one in runs}) > 1}:
        raise ValueError(f"runs of kinds {' and '.join(sorted(kinds))} have no figure in common; compare those of one kind")
    figures = [run.figures() for run in runs]
    every = list(dict.fromkeys(name for found in figures for name in found if not name.endswith(ROUGH)))
    if unknown := [word for word in wanted or () if not any(word in (name, name.rpartition(" ")[2]) for name in every)]:
        raise ValueError(f"figures=[{unknown[0]}]: no run measured it while it trained; they have {', '.join(every) or 'none yet'}")
    shown = [name for name in every if wanted is None or any(word in (name, name.rpartition(" ")[2]) for word in wanted)]
    entries = []
    for place, name, run, found in zip(places, names, runs, figures, strict=True):
        steps = str(run.steps) if run.finished else f"{run.step} of {run.steps}"
        lacks = f"no loss of its last steps is finite; {place / 'events.jsonl'} says which were left out" if run.diverged else ""
        lacks = lacks if run.finished else f"it stands at step {steps}; {command('train', resume=place, **needed(run.info))}"
        entries.append(RunEntry(name, words_of(place), {"step": steps}, {each: cell(found, each) for each in shown}, lacks))
    others = unlike(runs)
    notes = [f"beware: what was measured while training depends on {', '.join(others)}, in which these runs differ"] if others else []
    return entries, [*notes, "figures are those that the runs measured while they trained, the loss of training on each run's own terms"]


def change(first: Score, other: Score, name: str) -> Cell | None:
    """The change of a figure that is a mean over clips from the first score, clip by clip, with its interval: in its own units, the
    held-out loss in per cent. None for other figures, or if fewer than three clips are the same."""
    if name == "loss":
        return loss_change(first, other)
    from sora.evaluation.pairing import alike

    ours, theirs = first.clips.get(name, {}), other.clips.get(name, {})
    shared = [clip for clip in ours if clip in theirs]
    same = all(at(first.protocol, place) == at(other.protocol, place) for place in alike(name))
    if first is other or not same or len(shared) < 3 or len(shared) < min(len(ours), len(theirs)):
        return None
    import torch

    from sora.metrics.statistics import paired_difference

    one, two = (torch.tensor([side[clip] for clip in shared], dtype=torch.float64) for side in (ours, theirs))
    found = paired_difference(one, two)
    return Cell(found.difference, found.low, found.high)


def loss_change(first: Score, other: Score) -> Cell | None:
    """The change of the held-out loss in per cent of the first score's, clip by clip, with its interval.

    None unless both have losses of at least three clips, with the same clips, noise and levels.
    """
    shared = [name for name in first.losses if name in other.losses]
    same = all(at(first.protocol, place) == at(other.protocol, place) for place in PAIRED)
    if first is other or not same or len(shared) < 3:
        return None
    import torch

    from sora.metrics.statistics import paired_change

    one, two = (torch.tensor([side.losses[name] for name in shared], dtype=torch.float64) for side in (first, other))
    found = paired_change(one, two)
    return Cell(100 * found.change, 100 * found.low, 100 * found.high)


def columns(scores: Sequence[Score], figures: Sequence[str] | None) -> list[str]:
    """The figures to show: those whose names, or the start of them, are in `figures`, or the headlines. A short name is replaced by the
    long one, except for motion, whose short names are figures themselves.

    Raises ValueError for a name that no score has.
    """
    every = list(dict.fromkeys(name for score in scores for name in score.figures))
    kept = [name for name in every if of_motion(name) not in every]
    long = {bare(name.partition("/")[0]) for name in kept if "/" in name}
    once = [name for name in kept if "/" in name or not {name, name.partition("_")[0], bare(name).partition("_")[0]} & long]
    main = [name for name in once if not name.endswith(ROUGH) and name.count("/") < 2]
    if figures is None:
        return [name for name in main if headline(name)] or main
    found = []
    for word in figures:
        near = [name for name in main if name.partition("/")[0] == word] or [name for name in every if name == word]
        if not near:
            from sora.config.words import listed, meant

            raise ValueError(f"figures=[{word}]: no score has it{meant(word, every)}; they have {listed(every)}")
        found += near
    return list(dict.fromkeys(found))


def bare(name: str) -> str:
    """A figure's name without the dataset that starts a VAE's figures."""
    return name.rpartition("_vae_")[2]


def headline(name: str) -> bool:
    """Whether a figure measures a model."""
    word = bare(name.partition("/")[0])
    return word in HEADLINES or word in ("psnr", "ssim")


def cell(figures: Mapping[str, float], name: str) -> Cell:
    between = "/" if "/" in name else "_"
    return Cell(figures.get(name), figures.get(f"{name}{between}low"), figures.get(f"{name}{between}high"))
