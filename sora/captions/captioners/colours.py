"""What the stub says of a request: the colours of its frames."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_MOST = 64  # frames of a request that are counted


def said_of(body: Mapping[str, Any]) -> str:
    """What the stub says of a request: JSON of a caption by the colours of its first and its last frame."""
    content = body["messages"][-1]["content"]
    parts = content if isinstance(content, list) else []
    pictures = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    if any(part.get("type") == "video_url" for part in parts):
        return _caption("video", "video", 0)
    if not pictures:
        return _caption("long", "varied", 0)
    return _caption(colour_of(pictures[0]), colour_of(pictures[-1]), min(len(pictures), _MOST))


def _caption(first: str, last: str, count: int) -> str:
    change = f"turns {last}" if last != first else f"stays {first}"
    said = {
        "short": f"A scene in {first} {change}.",
        "dense": f"All that is there is mostly {first} in the beginning and {change} by the end, as {count or 'some'} glances at it show.",
        "subjects": [f"a {first} scene"],
        "actions": [f"it {change}"],
        "camera": "not known",
        "light": f"{first} light",
        "style": "plain",
        "text_seen": "",
    }
    return json.dumps(said)


def colour_of(url: str) -> str:
    """The name of the mean colour of a picture in a data URI."""
    import colorsys

    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    picture.draft("RGB", (32, 32))
    red, green, blue = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes()
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if saturation < 0.15 or value < 0.1:
        return "dark" if value < 0.25 else "grey" if value < 0.75 else "white"
    return _HUES[round(hue * len(_HUES)) % len(_HUES)]
