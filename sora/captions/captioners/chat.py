"""Captions by a server that speaks OpenAI's protocol of chat completions: vLLM, SGLang, or a hosted one."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sora.captions.answer_form import described, schema
from sora.captions.captioner import CaptionFields, CaptionRequest, CaptionResult
from sora.captions.parsing import caption_in
from sora.captions.prompts import CaptionPrompt
from sora.gate.forms import Fields, fitting, shown
from sora.gate.sizes import Number
from sora.gate.texts import FileLimit, json_of
from sora.web.answers import AskFailed, HttpAnswer
from sora.web.client import ServerClient, ServerOutcome
from sora.web.endpoint import Endpoint
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace

_LIMIT = FileLimit(64 << 20, 200_000, 24)  # of an answer, whose bytes the client has counted
_NO_SCHEMA = re.compile(r"(?i)response_format|json_schema|guided|structured output|grammar")
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_VIDEO_RATE = (0.1, 60.0)  # frames a second of a video part
PASS = 1_000_003  # by which the seed of a second opinion differs


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """The form of requests. parts: "frames" sends each frame as a JPEG behind its time in seconds, since servers time frames that they did
    not sample themselves wrongly; "video" sends an mp4. quality: of JPEGs, 1 to 95. hint: the kind of the clip's own caption that is given
    as a hint (None: none is). schema: whether the server is asked to keep to a JSON schema; where it cannot, it is asked in words.
    temperature, max_tokens, seed: as the protocol has them."""

    parts: str
    quality: int
    hint: str | None
    schema: bool
    temperature: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.parts not in ("frames", "video"):
            raise ValueError(f"captioner.form.parts={self.parts} is neither frames nor video")
        Number(1, whole=True, most=95).of(self.quality, "captioner.form.quality")
        Number(0, most=2).of(self.temperature, "captioner.form.temperature")
        Number(16, whole=True, most=1 << 16).of(self.max_tokens, "captioner.form.max_tokens")
        Number(0, whole=True, most=1 << 30).of(self.seed, "captioner.form.seed")


class ChatCaptioner:
    """A captioner that asks a server.

    url: its address up to /v1. model: by the name that the server knows. key_variable: the name of the environment variable with the key
    (None: no key). stop_after: requests that fail in a row before the job stops.
    """

    def __init__(
        self,
        *,
        url: str | None,
        model: str | None,
        key_variable: str | None,
        form: ChatForm,
        prompt: CaptionPrompt,
        limits: AnswerLimits,
        retries: Retries,
        pace: Pace,
        stop_after: int,
    ) -> None:
        self.url, self.model, self.key_variable = url, model, key_variable
        self.form, self.prompt = form, prompt
        self.limits, self.retries, self.pace, self.stop_after = limits, retries, pace, stop_after
        self.with_schema = form.schema  # until the server refuses it

    @property
    def name(self) -> str:
        return self._required("model", "the name by which the server knows it")

    @property
    def even_frames(self) -> bool:
        return self.form.parts == "video"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"captions.{self.form.hint}",) if self.form.hint else ()

    def identity(self) -> dict[str, Any]:
        """The model, the prompt and the form; not the address, since the same model may stand elsewhere."""
        return {"chat": 1, "model": self.name, "prompt": self.prompt.identity(), "form": asdict(self.form), "schema": schema()}

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """See `Captioner`. Raises `CircuitOpen` if the server seems gone."""
        url = self._required("url", "such as http://127.0.0.1:8000/v1")
        endpoint = Endpoint(url, key_variable=self.key_variable, key_name="captioner.url")
        given: dict[str, Any] = {"limits": self.limits, "retries": self.retries, "pace": self.pace, "stop_after": self.stop_after}
        with ServerClient(endpoint, **given, seed=self.form.seed) as client:
            for outcome in client.each(self.ask(request, endpoint) for request in requests):
                yield _result(outcome)

    def ask(self, request: CaptionRequest, endpoint: Endpoint) -> _ChatAsk:
        """The request as it is sent to a server, a `sora.web.ServerAsk`."""
        return _ChatAsk(self, request, endpoint)

    def close(self) -> None:
        """Do nothing: connections end with a call."""

    def _required(self, key: str, what: str) -> str:
        if not (said := getattr(self, key)):
            raise ValueError(f"captioner.{key} is needed: {what}; captioner=stub stands in for a server")
        return said


def _result(outcome: ServerOutcome[tuple[CaptionFields, tuple[str, ...]]]) -> CaptionResult:
    ask = outcome.ask
    assert isinstance(ask, _ChatAsk)
    fields, notes = outcome.value or (None, ())
    counts = {"attempts": outcome.attempts, "tokens_in": ask.tokens_in, "tokens_out": ask.tokens_out}
    seconds = round(outcome.seconds, 4)
    return CaptionResult(id=ask.id, fields=fields, error=outcome.reason, notes=notes, seconds=seconds, cut=outcome.cut, **counts)


@dataclass
class _ChatAsk:
    """A `ServerAsk` for a caption."""

    captioner: ChatCaptioner
    request: CaptionRequest
    endpoint: Endpoint
    tokens_in: int = 0
    tokens_out: int = 0
    path: str = "/chat/completions"
    _parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.request.id

    def body(self, attempt: int) -> bytes:
        captioner, form, prompt = self.captioner, self.captioner.form, self.captioner.prompt
        if not self._parts:
            self._parts = self._shown()
        asked = prompt.summing(self.request.windows) if self.request.windows else prompt.asked(hint=self._hint())
        with_schema = captioner.with_schema
        asked = asked if with_schema else f"{asked}\n\n{described()}"
        messages = [
            {"role": "system", "content": prompt.system.strip()},
            {"role": "user", "content": [*self._parts, {"type": "text", "text": asked}]},
        ]
        said: dict[str, Any] = {"model": captioner.name, "messages": messages, "temperature": form.temperature}
        said |= {"max_tokens": form.max_tokens, "seed": form.seed + PASS * self.request.pass_number + attempt - 1}
        return json.dumps(said | ({"response_format": schema()} if with_schema else {})).encode("ascii")

    def judge(self, answer: HttpAnswer) -> tuple[CaptionFields, tuple[str, ...]]:
        if not answer.good:
            raise self._refused(answer)
        try:
            said = fitting(json_of(answer.body, limit=_LIMIT), _FORM, "the answer")
        except (ValueError, RecursionError) as error:
            kind = answer.headers.get("content-type", "")
            more = f", but {shown(kind)}" if kind and "json" not in kind else ""
            raise AskFailed(f"{self.endpoint.named} answers with no JSON of a chat completion{more} ({error})", again=True) from None
        self._count(said.get("usage"))
        if len(said["choices"]) != 1:
            raise AskFailed(f"{self.endpoint.named} answers with {len(said['choices'])} choices, and one was asked for", again=True)
        choice = said["choices"][0]
        content = self.endpoint.scrubbed(_content(choice["message"]))
        try:
            fields, notes = caption_in(_THOUGHT.sub("", content))
        except ValueError as error:
            raise AskFailed(str(error), again=True) from None
        fields = _scrubbed(fields, self.endpoint)  # again: what was taken out of a text may have stood within a key
        return fields, (*notes, *(("cut",) if choice.get("finish_reason") == "length" else ()))

    def _refused(self, answer: HttpAnswer) -> AskFailed:
        """What a status that is no success means. A server that takes no schema is asked in words from then on."""
        text = self.endpoint.scrubbed(answer.body[: 1 << 16].decode("utf-8", "replace"))
        if self.captioner.form.schema and _NO_SCHEMA.search(text) and answer.status != 413:
            self.captioner.with_schema = False
            return AskFailed(f"{self.endpoint.named} takes no JSON schema", again=True, wait=0.0)
        return AskFailed(f"{self.endpoint.named} answers {answer.status} ({shown(text)})")

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            found = [count if type(count) is int and 0 <= count < 1 << 40 else 0 for count in counts]
            self.tokens_in, self.tokens_out = self.tokens_in + found[0], self.tokens_out + found[1]

    def _hint(self) -> str:
        captions = self.request.facts.get("captions", {})
        return str(captions.get(self.captioner.form.hint, "")) if self.captioner.form.hint else ""

    def _shown(self) -> list[dict[str, Any]]:
        """The frames as parts of a message."""
        frames, times, form = self.request.frames, self.request.times, self.captioner.form
        if form.parts == "video" and len(frames) > 1:
            return [{"type": "video_url", "video_url": {"url": _data("video/mp4", _mp4(frames, times))}}]
        parts: list[dict[str, Any]] = []
        for frame, time in zip(frames, times, strict=True):
            parts.append({"type": "text", "text": f"<{time:.1f} seconds>"})
            parts.append({"type": "image_url", "image_url": {"url": _data("image/jpeg", _jpeg(frame, form.quality))}})
        return parts


_FORM = Fields({"choices": [Fields({"message": Fields({})})]})


def _content(message: dict[str, Any]) -> str:
    """The text of a message, also of one in parts. Raises AskFailed if there is none."""
    said = message.get("content")
    if isinstance(said, list):
        said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    if isinstance(said, str) and said:
        return said
    refusal = message.get("refusal")
    why = f"refuses: {shown(refusal)}" if isinstance(refusal, str) else "is empty"
    raise AskFailed(f"the answer {why}", again=True)


def _scrubbed(fields: CaptionFields, endpoint: Endpoint) -> CaptionFields:
    said = {name: endpoint.scrubbed(text) for name, text in asdict(fields).items() if isinstance(text, str)}
    lists = {name: tuple(map(endpoint.scrubbed, items)) for name, items in asdict(fields).items() if not isinstance(items, str)}
    return replace(fields, **said, **lists)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _jpeg(frame: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _mp4(frames: UInt8[np.ndarray, "F H W 3"], times: tuple[float, ...]) -> bytes:
    from sora.video.encoding import encode

    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-3)
    return encode(frames, min(max(rate, _VIDEO_RATE[0]), _VIDEO_RATE[1]), lossless=False)
