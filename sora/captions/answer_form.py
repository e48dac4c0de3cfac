"""The form that answers have: a JSON schema, and the same in words."""

from __future__ import annotations

from typing import Any

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
