"""A captioner whose server is a stub in this process, with faults as asked: everything but the model is as with a real one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sora.captions.captioner import CaptionRequest, CaptionResult
from sora.captions.captioners.chat import ChatCaptioner, ChatForm
from sora.captions.captioners.colours import said_of
from sora.captions.prompts import CaptionPrompt
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace
from sora.web.stub import FAULTS, StubServer


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
            self.server = StubServer(said_of, faults=self.faults, seconds=self.seconds, seed=self._chat.form.seed, keep=False)
            self._chat.url = self.server.url
        return self._chat(requests)

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            self.server.close()
            self.server = None
