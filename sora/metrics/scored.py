"""The form of scores.json, for readers of one that may be damaged or a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora.gate.forms import Either, Fields, Maybe, Named, anything, count, fitting, flag, inside, number, real, some, text, word
from sora.gate.texts import STATE, read_json

_NUMBER = Maybe(Either(flag, number))
_NUMBERS = Either(Named(_NUMBER), _NUMBER)
_SIZED = {"frames": some, "height": some, "width": some, "fps": Maybe(real(0))}
_TOLD = dict.fromkeys(("prompt", "key", "name", "caption", "dataset"), Maybe(text))
ROW = Fields({}, may={**_SIZED, **_TOLD, "file": inside, "adherence": Named(Maybe(flag)), "physics": Named(_NUMBERS), "psnr": number})
_BY_SHAPE = {**dict.fromkeys(("width", "height", "frames", "clips"), count), "loss": number, "levels": [number]}
_HELDOUT = Fields({}, may={"clips": Named(number), "by_level": Named(number), "by_shape": [_BY_SHAPE]})
_PAIR = Fields({"number": count, "file": inside, "distance": number, "prompt": text, "caption": Maybe(text), "key": text}, may=_SIZED)
_NEIGHBOURS = {"remembered": number, "z": number, "extractor": text, "training": count, "usual": number, "pairs": [_PAIR]}
FORM = Fields(
    {
        "figures": Named(_NUMBER),
        "protocol": Named(anything),
        "protocol_sha256": text,
        "n": count,
        "kind": word("diffusion", "vae", "videos", "captioner"),
    },
    may={
        "rows": Maybe([ROW]),
        "clips": [inside],
        "real": Maybe([Fields({"file": inside, **dict.fromkeys(("width", "height"), some)}, may={**_SIZED, **_TOLD})]),
        "heldout": Maybe(_HELDOUT),
        "confusions": Maybe(Named(Named(Named(count)))),
        "neighbours": Maybe(_NEIGHBOURS),
        "cautions": Maybe([text]),
        "subject": Maybe(Fields({}, may={"step": Maybe(count), "run": Maybe(text), "place": Maybe(text)})),
        "preset": Maybe(Fields({"name": text}, may={"changed": Maybe([text]), "departs": Maybe(Either([text], text))})),
        "floor": anything,
        "distances": Maybe([anything]),
    },
)  # the form of scores.json


@dataclass(frozen=True)
class Motion:
    """A word of `metrics=` whose distances use features of their own. extractor: its name without a version. named: the names of the
    distances' scores, such as frechet: motion_frechet. told: begins the names of the other scores, the numbers of clips."""

    extractor: str
    told: str
    named: Mapping[str, str]

    def called(self, figure: str) -> str:
        return self.named.get(figure, f"{self.told}_{figure}")


MOTION = {
    "motion": Motion("motion3d", "motion", {"frechet": "motion_frechet", "kvd": "motion_kvd"}),
    "fvmd_lite": Motion("flow-histograms", "fvmd_lite", {"frechet": "fvmd_lite"}),
}


def of_motion(name: str) -> str | None:
    """`frechet/motion3d-v1@17f/low` as `motion_frechet_low`, also after a dataset's name in a VAE's scores; None for other extractors."""
    first, *rest = name.split("/")
    dataset, between, figure = first.rpartition("_vae_")
    called = [word.called(figure) for word in MOTION.values() if rest and rest[0].startswith(f"{word.extractor}-")]
    return "_".join([f"{dataset}{between}{called[0]}", *rest[1:]]) if called else None


def told_shorter(name: str, figures: Mapping[str, Any]) -> bool:
    """Whether a score named with its extractor, `frechet/rand3d-v1@17f/low`, is also in `figures` under a short name."""
    first, *rest = name.split("/")
    short = ("_".join([first, *rest[1:]]), of_motion(name)) if rest else ()
    # Compare values: the short name kvd may be of another extractor than kvd/motion3d-v1@17f.
    return any(one is not None and figures.get(one) == figures[name] for one in short)


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of a file. Raises ValueError with the file and the key if they have another form."""
    said = read_json(path, limit=STATE, within=path.parent)
    if not isinstance(said, dict) or not isinstance(said.get("figures"), dict) or "protocol" not in said:
        raise ValueError(f"{path} holds no scores of sora evaluate")
    return fitting(said, FORM, str(path), "evaluate again")
