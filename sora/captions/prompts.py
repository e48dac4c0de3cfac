"""What a captioner is asked: the texts of an option, with a version, and the JSON schema of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sora.captions.captioner import WindowCaption
from sora.captions.wording import quoted

_MEANINGS = {
    "short": "one sentence, at most 20 words",
    "dense": "a paragraph: everything that is seen and how it changes over time",
    "subjects": "each person, animal or thing that matters, with how it looks",
    "actions": "what happens, one item each, in the order of time",
    "camera": "shot size, angle and movement of the camera",
    "light": "light and colours",
    "style": "such as film, animation, phone video",
    "text_seen": "lettering in the picture, letter by letter; empty if there is none",
}
_LISTS = ("subjects", "actions")


@dataclass(frozen=True, kw_only=True)
class CaptionPrompt:
    """The texts that a model is given. version: counts up when a text changes; it names the set of captions. system: who the model is.
    text: behind the frames. summary: behind the captions of windows. hint: behind the text, where the clip's own caption is given; it has
    {caption} where the caption stands, in quotes."""

    version: str
    system: str
    text: str
    summary: str
    hint: str

    def __post_init__(self) -> None:
        if self.hint.count("{caption}") != 1:
            raise ValueError("prompt.hint has {caption} once, where the clip's own caption stands")

    def identity(self) -> dict[str, Any]:
        return asdict(self)

    def asked(self, *, hint: str = "") -> str:
        """The text behind the frames. hint: a caption of the clip, "" for none."""
        said = self.text.strip()
        return f"{said}\n\n{self.hint.strip().replace('{caption}', quoted(hint))}" if hint else said

    def summing(self, windows: Sequence[WindowCaption]) -> str:
        """The text of a request for one caption from those of windows."""
        lines = [f"<{one.start:.1f} to {one.end:.1f} seconds> {quoted(one.fields.dense, most=6_000)}" for one in windows]
        return "\n".join([*lines, "", self.summary.strip()])


def schema() -> dict[str, Any]:
    """The JSON schema of an answer, as `response_format` takes it."""
    text = {"type": "string"}
    fields = {
        name: ({"type": "array", "items": text} if name in _LISTS else text) | {"description": meaning}
        for name, meaning in _MEANINGS.items()
    }
    said = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "caption", "strict": True, "schema": said}}


def described() -> str:
    """The form of an answer in words, for servers that take no schema."""
    lines = ",\n".join(
        f'  "{name}": {"[" if name in _LISTS else ""}"{meaning}"{"]" if name in _LISTS else ""}' for name, meaning in _MEANINGS.items()
    )
    return f"Answer with one JSON object and nothing else:\n{{\n{lines}\n}}"
