"""What a scores.json holds, of whatever was scored: its form, for who reads one that may be damaged, or a stranger's."""

from __future__ import annotations

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
        "kind": word("diffusion", "vae", "videos"),
    },
    may={
        "rows": Maybe([ROW]),
        "clips": [inside],
        "real": Maybe([Fields({"file": inside, **dict.fromkeys(("width", "height"), some)}, may={**_SIZED, **_TOLD})]),
        "heldout": Maybe(_HELDOUT),
        "neighbours": Maybe(_NEIGHBOURS),
        "cautions": Maybe([text]),
        "subject": Maybe(Fields({}, may={"step": Maybe(count), "run": Maybe(text), "place": Maybe(text)})),
        "preset": Maybe(Fields({"name": text}, may={"changed": Maybe([text]), "departs": Maybe(Either([text], text))})),
        "floor": anything,
        "distances": Maybe([anything]),
    },
)  # of scores.json


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of a file. Raises ValueError, naming the file and the key, for what is none."""
    said = read_json(path, limit=STATE, within=path.parent)
    if not isinstance(said, dict) or not isinstance(said.get("figures"), dict) or "protocol" not in said:
        raise ValueError(f"{path} holds no scores of sora evaluate")
    return fitting(said, FORM, str(path), "evaluate again")


def short_of(short: str, name: str) -> bool:
    """Whether a name may be the short one of another, which has an extractor's."""
    first, *rest = name.split("/")
    plain = "_".join([first, *rest[1:]])
    return bool(rest) and "/" not in short and (short == plain or short.endswith(f"_{plain}"))
