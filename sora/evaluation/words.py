"""The words of `metrics=`: what each needs, the default ones, and which fit what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sora.metrics.scored import MOTION

# Words that measure single clips (`sora.evaluation.measures.clips.MEASURES`), with what each needs of a clip; if it is missing, the command
# says so before any work.
NEEDS = {"adherence": ("prompt", "facts"), "physics": ("prompt", "facts"), "quality": ("extractor",), "text": ("prompt", "extractor")}
CONTINUATION = "continuation"
OF_RUNS = ("loss", "remembered")  # words about the run rather than about its videos
# Default words; adherence is measured only if all prompts are of the built-in world.
USUAL = {"videos": ("frechet", "kvd", "motion"), "diffusion": ("adherence", "frechet", "kvd", "motion"), "vae": ("reconstruction",)}
USUAL |= {"captioner": ("captions",)}
# The prefixes of the figures of each distance between sets.
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
    "captioner": ("captions",),
}


def listed(words: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The words of `metrics=`, which may be a single word without brackets; None if it is not set."""
    return (words,) if isinstance(words, str) else None if words is None else tuple(words)


def chosen(words: str | Sequence[str] | None, *, usual: Sequence[str], known: Sequence[str], scored: str) -> tuple[str, ...]:
    """The words of `metrics=`, or the usual ones for None. Raises ValueError for a word that does not fit what is scored."""
    given = listed(words)
    names = tuple(usual) if given is None else given
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"metrics={list(names)}: for {scored}, choose from {', '.join(known)}{_elsewhere(unknown)}")
    return names


def _elsewhere(words: Sequence[str]) -> str:
    """Where the words that do not fit would fit, for the message."""
    of = {"videos": "a folder of videos (checkpoint=FOLDER)", "diffusion": "a diffusion run", "vae": "a VAE", "captioner": "a captioner"}
    told = {word: [of[kind] for kind, known in KNOWN.items() if word in known] for word in words}
    return "".join(f"; {word} is measured of {' and '.join(kinds)}" for word, kinds in told.items() if kinds)


def of_words(found: Mapping[str, float], words: Sequence[str]) -> dict[str, float]:
    """The figures of distances that the words of `metrics=` ask for, and the numbers of clips."""
    wanted = [start for word in words for start in DISTANCES.get(word, ())] + ["n_real", "n_fake"]
    starts = tuple(f"{start}{after}" for start in wanted for after in "/_")
    return {name: value for name, value in found.items() if name in wanted or name.startswith(starts)}


def needs_extractor(words: Sequence[str]) -> bool:
    """Whether any of the words reads an extractor's features."""
    return any(word in DISTANCES or "extractor" in NEEDS.get(word, ()) for word in words)


def check_uncaptioned(word: str) -> None:
    """Raise ValueError for a word that is neither value of `uncaptioned=`."""
    if word not in ("refuse", "leave_out"):
        raise ValueError(f"uncaptioned={word}: refuse (a clip without a caption stops the command) or leave_out")
