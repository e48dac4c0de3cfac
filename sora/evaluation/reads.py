"""Which keys of `sora evaluate` affect the scores; a key that was given and has no effect is refused before any work.

The tables list what the code reads; tests change every other key and expect the same scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation.words import DISTANCES, KNOWN, NEEDS, USUAL, chosen
from sora.metrics.scored import MOTION

if TYPE_CHECKING:
    from sora.evaluation.settings import EvaluationSettings

ALWAYS = ("checkpoint", "metrics", "output", "device", "page", "seed", "launcher", "preset", "departs")
SORTED = ("split", "selection", "caption", "sets")  # only datasets of sora have splits, selections and kinds and sets of captions
SIZED = ("kernel", "crop", "quantise")  # only read if clips are resized
OF_KIND = {
    "videos": ("n", "generated", "keep", *SORTED),
    "diffusion": ("data", "step", "ema", "budget", *SORTED),
    "vae": ("data", "step", "ema", "n", "real", "generated", "keep", "split", "selection"),
    "captioner": ("data", "step", "ema", "n", "budget", "keep", "split", "selection", "sets"),
}
# Keys that any word but loss reads of a diffusion run.
MAKING = ("n", "steps", "shift", "first", "sampler", "levels", "guidance", "negative", "uncaptioned", "generated", "vbench", "keep")
COMPARING = ("data", "real", "extractor", "size", *SIZED, "trajectories", "rates", "statistics", "cache")
FRECHET = ("ddof", "bootstrap", "permutations")
PICTURES = ("size", "kernel", "crop")  # for words that measure single clips, whose values are always rounded
NEEDED = {"extractor": "extractor", "prompt": "uncaptioned"}  # the key behind each need of a word
OF_WORD = {
    "loss": ("loss",),
    "continuation": ("continuation", "data", "real", "bootstrap", *PICTURES),
    "remembered": ("training",),
    "frechet": FRECHET,
    "fvd": FRECHET,
    "kvd": ("permutations",),
    "jedi": ("permutations",),
    "precision": ("neighbours",),
    **dict.fromkeys(MOTION, FRECHET),
    **{word: (*PICTURES, *(key for need, key in NEEDED.items() if need in needs)) for word, needs in NEEDS.items()},
}
NAMED = {"videos": "videos", "diffusion": "a run", "vae": "a VAE", "captioner": "a captioner"}


def refuse_unread(settings: EvaluationSettings, said: Mapping[str, Any], *, kind: str) -> None:
    """Raise ValueError for a key on the command line that nothing reads, unless it is null or 0, and for a word of `metrics=` that does not
    fit what is scored. said: the given keys with their values. kind: see `kind_of`."""
    words = chosen(settings.metrics, usual=USUAL[kind], known=KNOWN[kind], scored=NAMED[kind])
    counts = read(settings, words, kind=kind)
    for key, value in said.items():
        if (top := key.partition(".")[0]) not in counts:
            if value is None or (value == 0 and not isinstance(value, bool)):
                continue  # null or 0 asks for nothing
            told = key if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else f"{key}={value}"
            raise ValueError(f"{told} has no effect here: {_why(settings, top, words, kind)}; leave it out")


def read(settings: EvaluationSettings, words: Sequence[str], *, kind: str) -> set[str]:
    """The keys that affect the scores, without the part after the first dot."""
    from sora.vae.artefact import CARD

    found = {*ALWAYS, *OF_KIND[kind], *(key for word in words for key in OF_WORD.get(word, ()))}
    if kind == "diffusion" and any(word != "loss" for word in words):
        found |= set(MAKING)
    if any(word in DISTANCES or word in MOTION for word in words):
        found |= {key for key in COMPARING if key != "rates" or kind == "videos"}
    if not any(word in DISTANCES for word in words):
        found -= {
            *(("statistics",) if settings.data is not None else ()),
            *(() if any("extractor" in OF_WORD.get(word, ()) for word in words) else ("extractor",)),
        }
    if settings.size is None:
        found -= set(SIZED)
    if kind == "vae":
        folder = Path(settings.checkpoint)
        whole = (folder / CARD).is_file()
        found -= {"step"} if whole else set()
        found -= {"ema"} if whole or (settings.step is None and (folder / "vae" / CARD).is_file()) else set()
    return found if _datasets(settings, kind) else found - set(SORTED)


def _datasets(settings: EvaluationSettings, kind: str) -> bool:
    """Whether any source of clips is a dataset of sora."""
    return any(
        (Path(folder) / "dataset.json").is_file()
        for folder in [*(settings.data or ()), *([settings.checkpoint] if kind == "videos" else [])]
    )


def _why(settings: EvaluationSettings, key: str, words: Collection[str], kind: str) -> str:
    """Which setting would read a key that is not read now, for the message."""
    measured = f"metrics=[{','.join(words)}] of {NAMED[kind]}"
    if key in SIZED and settings.size is None:
        return "it says how clips are brought to a size, and size= is null"
    if key in SORTED and key in OF_KIND[kind]:
        return "only a dataset that sora made has splits, selections, and captions of kinds and in sets, and none is read"
    if key in ("step", "ema") and kind == "vae":
        return f"{settings.checkpoint} is a finished VAE, with weights of its own"
    readers = [_named(word, kind) for word, keys in OF_WORD.items() if key in keys]
    if key in COMPARING and key != "extractor" and not (key == "rates" and kind != "videos"):
        readers = ["a distance, such as metrics=[frechet]"]
    elif kind == "diffusion" and key in MAKING:
        readers = ["what is measured of clips that it makes, such as metrics=[frechet],"]
    elif not readers:
        readers = [NAMED[other] for other, keys in OF_KIND.items() if key in keys or (other == "diffusion" and key in MAKING)]
        readers += ["videos from files"] if key == "rates" else []
    either = " or ".join(filter(None, (", ".join(readers[:-1]), *readers[-1:])))
    return f"{measured} do not read it, but {either} would" if readers else f"{measured} do not read it"


def _named(word: str, kind: str) -> str:
    """A word of `metrics=`, with its kind where that is not the scored one."""
    if word in KNOWN[kind]:
        return f"metrics=[{word}]"
    return f"metrics=[{word}] of {NAMED[next(other for other, known in KNOWN.items() if word in known)]}"


# ---- a file of statistics in place of the real videos


def refuse_other_statistics(settings: EvaluationSettings, said: Collection[str], preset: str | None) -> None:
    """Raise ValueError, naming the fields, unless the clips of a file of statistics were taken by the policy `real`, as far as a preset or
    the command line sets it. The seed of random choices is not in the file, and is not checked."""
    from sora.metrics.feature_sets import read_features

    if settings.data is not None or settings.statistics is None or not Path(settings.statistics).is_file():
        return
    found = read_features(Path(settings.statistics)).protocol
    taken, dataset = found.get("real"), found.get("dataset")
    if not isinstance(taken, dict) or not isinstance(dataset, dict):
        return  # statistics of something else; reported where the file is read
    named = [key.partition(".")[2] for key in said if key.partition(".")[0] == "real"]
    real = vars(settings.real)
    keys = list(real) if preset is not None or "" in named else [key for key in real if key in named]
    wrong = [
        f"real.{key}={_word(real[key])} (it has {_word(taken.get(key))}{_all(key, settings, taken, dataset)})"
        for key in keys
        if not _same(key, settings, taken, dataset)
    ]
    if wrong:
        asked = "as asked for" if preset is None else f"as preset={preset} and the command line say"
        raise ValueError(
            f"statistics={settings.statistics} is not of clips that were taken {asked}: {', '.join(wrong)}; score against the real videos"
            " themselves (data=FOLDER), or say what the file has"
        )


def _same(key: str, settings: EvaluationSettings, taken: dict[str, Any], dataset: dict[str, Any]) -> bool:
    """Whether a field in the file is as asked. n=null means all videos, so it must equal their number, unless short ones were left out."""
    wanted = getattr(settings.real, key)
    if key == "windows" and key not in taken:
        return wanted == 1  # an older file: one window for each video
    if key == "n" and wanted is None:
        return taken.get("n") == dataset.get("clips") or taken.get("short") == "leave_out"
    if key == "choose" and taken.get("n") == dataset.get("clips"):
        return True  # the choice has no effect if all videos are taken
    return key in taken and taken[key] == wanted


def _all(key: str, settings: EvaluationSettings, taken: dict[str, Any], dataset: dict[str, Any]) -> str:
    return f" of {dataset.get('clips')}" if key == "n" and settings.real.n is None else ""


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
