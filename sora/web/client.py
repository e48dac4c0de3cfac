"""Sends many requests to one server: as many at once as it bears, each tried again where that may help, until the server seems gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar

from sora.gate.forms import shown
from sora.gate.sizes import Number
from sora.web.answers import AskFailed, Connections, HttpAnswer
from sora.web.endpoint import Endpoint
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace
from sora.web.waiting import retry_after

Value_co = TypeVar("Value_co", covariant=True)
Value = TypeVar("Value")
BUSY = (408, 425, 429, 503, 529)  # statuses that ask for fewer requests
_READ = 1 << 16  # bytes of a refusal that are looked at
_ADVICE = {401: "the key is not accepted, look at key_variable", 403: "the key may not do this", 404: "look at the url and the model"}


class CircuitOpen(ConnectionError):
    """Raised if so many requests failed in a row that the server seems gone, or wrongly set."""


class ServerAsk(Protocol[Value_co]):
    """A request. Both functions are called by the thread that sends it."""

    @property
    def id(self) -> str:
        """The request's name, from which the jitter of its waits is drawn."""
        ...

    @property
    def path(self) -> str:
        """Below the endpoint's, such as /chat/completions."""
        ...

    def body(self, attempt: int) -> bytes:
        """What is sent in the attempt of this number, from 1."""
        ...

    def judge(self, answer: HttpAnswer) -> Value_co:
        """The value of an answer, also of one with status 400 or 422. Raises AskFailed if it cannot be used."""
        ...


class ServerOutcome(NamedTuple, Generic[Value]):
    """What came of a request. value: of its answer; None with a reason. seconds: of the last attempt. cut: the client stopped before all
    attempts were made."""

    ask: ServerAsk[Value]
    value: Value | None
    reason: str
    attempts: int
    seconds: float
    cut: bool = False


class ServerClient:
    """Sends requests to one server by threads, each with its own connection.

    stop_after: requests in a row that fail, with all their attempts, before `each` ends with `CircuitOpen`. seed: of the jitter of waits.
    """

    def __init__(self, endpoint: Endpoint, *, limits: AnswerLimits, retries: Retries, pace: Pace, stop_after: int, seed: int = 0) -> None:
        Number(1, whole=True).of(stop_after, "stop_after")
        self.endpoint, self.retries, self.pace, self.stop_after, self.seed = endpoint, retries, pace, stop_after, seed
        self._connections = Connections(endpoint, limits)
        self._stop = threading.Event()

    def close(self) -> None:
        """End: what waits for another try is given up, and connections are closed."""
        self._stop.set()
        self._connections.close()

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, ask: ServerAsk[Value]) -> ServerOutcome[Value]:
        """What comes of one request, after as many attempts as it takes."""
        attempt, reason, began = 0, "", time.monotonic()
        while attempt < self.retries.attempts and not self._stop.is_set():
            attempt, began = attempt + 1, time.monotonic()
            try:
                value = ask.judge(self._answer(ask, attempt))
                seconds = time.monotonic() - began
                self.pace.answered(seconds)
                return ServerOutcome(ask, value, "", attempt, seconds)
            except AskFailed as error:
                reason = self.endpoint.scrubbed(str(error))
                if error.busy:
                    self.pace.slowed(began)
                if not error.again:
                    return ServerOutcome(ask, None, reason, attempt, time.monotonic() - began)
                wait = self.retries.wait(ask.id, attempt, seed=self.seed, asked=error.wait)
                if attempt < self.retries.attempts and self._stop.wait(wait):
                    break
        cut = attempt < self.retries.attempts
        return ServerOutcome(ask, None, reason or "the command ended", attempt, time.monotonic() - began, cut)

    def _answer(self, ask: ServerAsk[Value], attempt: int) -> HttpAnswer:
        """The answer to one attempt; one that `judge` has nothing to do with raises AskFailed."""
        answer = self._connections.post(ask.path, ask.body(attempt))
        status = answer.status
        if answer.good or status in (400, 413, 422):
            return answer
        told = f"{self.endpoint.named} answers {status}"
        if status in _ADVICE:
            told = f"{told}: {_ADVICE[status]}"
        said = shown(self.endpoint.scrubbed(answer.body[:_READ].decode("utf-8", "replace"))).strip("'\"")
        busy = status in BUSY
        raise AskFailed(f"{told} ({said})" if said else told, again=busy or status >= 500, busy=busy, wait=retry_after(answer.headers))

    def each(self, asks: Iterable[ServerAsk[Value]]) -> Iterator[ServerOutcome[Value]]:
        """The outcomes of requests, each as soon as it is there. Requests are taken from `asks` only as they can be sent.

        Raises:
            CircuitOpen: `stop_after` requests in a row failed; before that, the outcomes of all that were in flight are given.
        """
        with closing(_Flight(self)) as flight:
            source, failed, gone, ahead = iter(asks), 0, "", True
            while True:
                while ahead and flight.many < self.pace.allowed and not flight.waiting:
                    ask = next(source, None)
                    if ask is None:
                        ahead = False
                    else:
                        flight.send(ask)
                if not flight.many:
                    break
                outcome = flight.next()
                failed = failed + 1 if outcome.reason else 0
                if failed == self.stop_after and not gone:
                    gone, ahead = f"{failed} requests in a row failed, the last because {outcome.reason}", False
                    self._stop.set()
                yield outcome
            if gone:
                raise CircuitOpen(f"{gone}; what is done is saved: mend that, and the same command goes on")


class _Flight(Generic[Value]):
    """The requests in flight, and the threads that wait for them, which are started as they are needed."""

    def __init__(self, client: ServerClient) -> None:
        self.many = 0
        self._client = client
        self._asks: SimpleQueue[ServerAsk[Value] | None] = SimpleQueue()
        self._done: SimpleQueue[ServerOutcome[Value] | BaseException] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> bool:
        """Whether an outcome is there."""
        return not self._done.empty()

    def send(self, ask: ServerAsk[Value]) -> None:
        self.many += 1
        if self.many > len(self._threads):
            self._threads.append(threading.Thread(target=self._work, daemon=True, name=f"sora-ask-{len(self._threads)}"))
            self._threads[-1].start()
        self._asks.put(ask)

    def next(self) -> ServerOutcome[Value]:
        """The next outcome; waits for it. Raises what a request's own functions raised."""
        found = self._done.get()
        self.many -= 1
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        for _ in self._threads:
            self._asks.put(None)

    def _work(self) -> None:
        while (ask := self._asks.get()) is not None:
            try:
                self._done.put(self._client.ask(ask))
            except BaseException as error:  # a mistake of `body` or `judge`, raised where the outcomes are read
                self._done.put(error)
