"""The words of `metrics=`: what each takes, which are usual, and which fit what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sora.metrics.scored import MOTION

# Words that measure single clips (`sora.evaluation.measures.clips.MEASURES`), with what each looks at of a clip; a command that lacks it
# says so before any work.
NEEDS = {"adherence": ("prompt", "facts"), "physics": ("prompt", "facts"), "quality": ("extractor",), "text": ("prompt", "extractor")}
CONTINUATION = "continuation"
OF_RUNS = ("loss", "remembered")  # words that say something of a run, beside the videos that it makes
# What is measured where metrics= says nothing; adherence only where all prompts are of the built-in world.
USUAL = {"videos": ("frechet", "kvd", "motion"), "diffusion": ("adherence", "frechet", "kvd", "motion"), "vae": ("reconstruction",)}
# What distances between sets are called: the beginnings of their figures.
DISTANCES = {
    "frechet": ("frechet",),
    "fvd": ("fvd", "frechet"),
    "kvd": ("kvd",),
    "jedi": ("jedi_formula",),
    "precision": ("precision", "recall", "density", "coverage"),
    "vendi": ("vendi_real", "vendi_fake"),
    "inception_score": ("inception_score",),
}
KNOWN = {
    "videos": (*NEEDS, *DISTANCES, *MOTION, CONTINUATION),
    "diffusion": (*NEEDS, *DISTANCES, *MOTION, *OF_RUNS),
    "vae": ("reconstruction", *DISTANCES, *MOTION),
}


def listed(words: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The words of `metrics=`, which may be one word without brackets; None where nothing is said."""
    return (words,) if isinstance(words, str) else None if words is None else tuple(words)


def chosen(words: str | Sequence[str] | None, *, usual: Sequence[str], known: Sequence[str], scored: str) -> tuple[str, ...]:
    """The words of `metrics=`, or the usual ones for None. Raises ValueError for one that does not fit what is scored."""
    given = listed(words)
    names = tuple(usual) if given is None else given
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"metrics={list(names)}: for {scored}, choose from {', '.join(known)}{_elsewhere(unknown)}")
    return names


def _elsewhere(words: Sequence[str]) -> str:
    """What else has words that do not fit what is scored."""
    of = {"videos": "a folder of videos (checkpoint=FOLDER)", "diffusion": "a diffusion run", "vae": "a VAE"}
    told = {word: [of[kind] for kind, known in KNOWN.items() if word in known] for word in words}
    return "".join(f"; {word} is measured of {' and '.join(kinds)}" for word, kinds in told.items() if kinds)


def of_words(found: Mapping[str, float], words: Sequence[str]) -> dict[str, float]:
    """Of all figures of distances, those that the words of `metrics=` ask for, and how many clips they are over."""
    wanted = [start for word in words for start in DISTANCES.get(word, ())] + ["n_real", "n_fake"]
    starts = tuple(f"{start}{after}" for start in wanted for after in "/_")
    return {name: value for name, value in found.items() if name in wanted or name.startswith(starts)}


def needs_extractor(words: Sequence[str]) -> bool:
    """Whether any of the words is measured of an extractor's features."""
    return any(word in DISTANCES or "extractor" in NEEDS.get(word, ()) for word in words)


def check_uncaptioned(word: str) -> None:
    """Raise ValueError for a word that says neither."""
    if word not in ("refuse", "leave_out"):
        raise ValueError(f"uncaptioned={word}: refuse (a clip without a caption stops the command) or leave_out")
