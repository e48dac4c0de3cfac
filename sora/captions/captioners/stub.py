"""A captioner whose server is a stub in this process, with faults as asked: everything but the model is as with a real one."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sora.captions.captioner import CaptionRequest, CaptionResult
from sora.captions.captioners.chat import ChatCaptioner, ChatForm
from sora.captions.prompts import CaptionPrompt
from sora.web.limits import AnswerLimits
from sora.web.pace import Pace
from sora.web.retrying import Retries
from sora.web.stub import FAULTS, StubServer

_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_MOST = 64  # frames of a request that are counted


class StubCaptioner:
    """A captioner that starts a `StubServer` and asks it. What it says is the mean colour of the first and of the last frame.

    faults: the share of answers that have each fault, by names of `sora.web.FAULTS`. seconds: before each answer. All else is as of
    `ChatCaptioner`.
    """

    def __init__(
        self,
        *,
        faults: Mapping[str, float],
        seconds: float,
        form: ChatForm,
        prompt: CaptionPrompt,
        limits: AnswerLimits,
        retries: Retries,
        pace: Pace,
        stop_after: int,
    ) -> None:
        if unknown := [name for name in faults if name not in FAULTS]:
            raise ValueError(f"captioner.faults: there is no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
        self.faults, self.seconds = dict(faults), seconds
        given: dict[str, Any] = {"form": form, "prompt": prompt, "limits": limits, "retries": retries, "pace": pace}
        self._chat = ChatCaptioner(url=None, model="stub", key_variable=None, stop_after=stop_after, **given)
        self.server: StubServer | None = None

    @property
    def name(self) -> str:
        return self._chat.name

    @property
    def even_frames(self) -> bool:
        return self._chat.even_frames

    @property
    def reads(self) -> tuple[str, ...]:
        return self._chat.reads

    def identity(self) -> dict[str, Any]:
        return self._chat.identity()

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        if self.server is None:
            self.server = StubServer(said_of, faults=self.faults, seconds=self.seconds, seed=self._chat.form.seed)
            self._chat.url = self.server.url
        return self._chat(requests)

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            self.server.close()
            self.server = None


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
