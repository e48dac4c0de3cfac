"""A server of chat completions for tests, benchmarks and dry runs, with faults that real ones have. Standard library alone.

Every request is answered by a function of its JSON; a share of the answers has a fault, drawn from (seed, request, how often it came), so
that the same requests meet the same faults in any order. It listens on this machine alone.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

from sora.web.waiting import jitter

_SEED = re.compile(rb'"seed": ?\d+')  # differs from try to try of one request
Reply = Callable[[dict[str, Any]], str]  # the content of the message that answers a request


class StubRequest(NamedTuple):
    """A request as it came. name: a hash of its body. times: how often it came, with this one. authorization: the header, "" if absent."""

    name: str
    body: dict[str, Any]
    times: int
    authorization: str


class StubReply(NamedTuple):
    """What is sent: whole parts of bytes, with seconds before each; then the connection is closed, if `close`."""

    parts: list[tuple[float, bytes]]
    close: bool = False


def http(status: int, body: bytes, *, close: bool = False, **headers: str) -> StubReply:
    """An HTTP answer. headers: with underscores for dashes."""
    named = {"content_type": "application/json", "content_length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} status", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value)]
    return StubReply([(0.0, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)], close)


def completion(content: str, **more: Any) -> bytes:
    """The JSON of a chat completion with one message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    said = {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 900, "completion_tokens": 120}}
    return json.dumps(said | more).encode()


Fault = Callable[[StubRequest, str], StubReply]  # of a request, and the content of the good answer


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _endless(asked: StubRequest, good: str) -> StubReply:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    return StubReply([(0.0, head), *([(0.0, _chunk(b" " * 65536))] * 4096)], close=True)


def _loris(asked: StubRequest, good: str) -> StubReply:
    whole = http(200, completion(good)).parts[0][1]
    return StubReply([(0.05, whole[place : place + 1]) for place in range(len(whole))], close=True)


def _late_headers(asked: StubRequest, good: str) -> StubReply:
    return StubReply([(0.05, b"HTTP/1.1 200 OK\r\n"), *[(0.05, b"x-a: b\r\n")] * 400], close=True)


def _of(text: Callable[[str], str]) -> Fault:
    return lambda asked, good: http(200, completion(text(good)))


def _changed(**fields: Any) -> Fault:
    """Answers whose JSON content has other values for some fields."""
    return _of(lambda good: json.dumps(json.loads(good) | fields) if good.startswith("{") else str(next(iter(fields.values()))))


def _choices(many: int) -> Fault:
    def several(asked: StubRequest, good: str) -> StubReply:
        said = [{"index": number, "message": {"content": good}, "finish_reason": "stop"} for number in range(many)]
        return http(200, completion(good, choices=said[::-1]))

    return several


def _dated(asked: StubRequest, good: str) -> StubReply:
    """A server whose clock is a year ahead: the date in Retry-After alone would have one wait for a year."""
    year = time.time() + 31_536_000
    return http(429, b"", retry_after=formatdate(year + 1, usegmt=True), date=formatdate(year, usegmt=True))


def _echo(asked: StubRequest, good: str) -> StubReply:
    return http(401, json.dumps({"error": {"message": f"Incorrect API key provided: {asked.authorization}"}}).encode())


def _no_schema(asked: StubRequest, good: str) -> StubReply:
    if "response_format" in asked.body:
        return http(400, b'{"error": {"message": "response_format of type json_schema is not supported by this model"}}')
    return http(200, completion(good))


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(64 << 20))


STEERED = "\x1b[2Jred\x00 \u202ederf\u202c \x9b31m \u2066left\u2069"
FAULTS: Mapping[str, Fault] = {
    "status_429": lambda asked, good: http(429, b"{}", retry_after="0"),
    "status_500": lambda asked, good: http(500, b"oops"),
    "status_503": lambda asked, good: http(503, b"", retry_after="-5"),
    "reset": lambda asked, good: StubReply([], close=True),
    "short": lambda asked, good: http(200, b'{"choices"', content_length="4000", close=True),
    "redirect": lambda asked, good: http(307, b"", location="https://elsewhere.example/v1/chat/completions"),
    "endless": _endless,
    "html": lambda asked, good: http(200, b"<html><body>Welcome to the cluster's login page</body></html>", content_type="text/html"),
    "echo_401": _echo,
    "gzip_bomb": lambda asked, good: http(200, _bomb(), content_encoding="gzip"),
    "brotli": lambda asked, good: http(200, b"xxxx", content_encoding="br"),
    "loris": _loris,
    "late_headers": _late_headers,
    "dated": _dated,
    "no_choice": _choices(0),
    "two_choices": _choices(2),
    "two_rows": _of(lambda good: f"[{good}, {good}]"),
    "fenced": _of(lambda good: f"Here is the caption:\n```json\n{good}\n```\nI hope it helps!"),
    "cut": _of(lambda good: good[: len(good) // 3]),
    "order": _of(lambda good: json.dumps(dict(reversed(json.loads(good).items()))) if good.startswith("{") else good),
    "trailing": _of(lambda good: f"{good.rstrip('} ')},}}"),
    "types": _changed(subjects="a square", actions=None, camera=["still"], light=7),
    "empty": _of(lambda good: ""),
    "refusal": _of(lambda good: "I'm sorry, but I can't help with that."),
    "long": _changed(dense="very " * 210_000),
    "script": _changed(short='<script>alert("1")</script> $(rm -rf ~); `id`', dense="</p><img src=x onerror=alert(1)> && reboot"),
    "steering": _changed(short=STEERED),
    "surrogate": _of(lambda good: good.replace('"short": "', '"short": "\\ud800')),
    "no_schema": _no_schema,
}


def named(body: bytes) -> str:
    """The name of a request, which is that of all its tries."""
    return blake2b(_SEED.sub(b"", body), digest_size=16).hexdigest()


class StubServer:
    """A server in a thread of this process, until `close`. url: of the endpoint.

    reply: the content of the message for a request. faults: the share of requests that have each, by its name in FAULTS. first: those
    faults, in this order, meet the first tries of every request. seconds: before each answer. keep: whether `asked` holds all requests.
    """

    def __init__(
        self,
        reply: Reply,
        *,
        faults: Mapping[str, float] | None = None,
        first: tuple[str, ...] = (),
        seconds: float = 0.0,
        seed: int = 0,
        keep: bool = True,
    ) -> None:
        if unknown := [name for name in (*(faults or {}), *first) if name not in FAULTS]:
            raise ValueError(f"faults: there is no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
        if sum((faults or {}).values()) > 1 or min((faults or {"": 0.0}).values()) < 0:
            raise ValueError(f"faults={dict(faults or {})} are shares of the requests: each from 0 on, 1 together at most")
        self.reply, self.faults, self.first, self.seconds, self.seed = reply, dict(faults or {}), first, seconds, seed
        self.asked: list[StubRequest] = []
        self._keep = keep
        self.good: Counter[str] = Counter()  # requests that were answered without a fault, by name
        self._times: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True, name="sora-stub")
        self._thread.start()
        started.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        """Stop listening and end the thread."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def answer(self, body: bytes, authorization: str = "") -> StubReply:
        """What is sent for a request."""
        name = named(body)
        self._times[name] += 1
        asked = StubRequest(name, json.loads(body), self._times[name], authorization)
        if self._keep:
            self.asked.append(asked)
        good = self.reply(asked.body)
        if (fault := self._fault(asked)) is not None:
            return FAULTS[fault](asked, good)
        self.good[name] += 1
        return http(200, completion(good))

    def _fault(self, asked: StubRequest) -> str | None:
        if asked.times <= len(self.first):
            return self.first[asked.times - 1]
        point = jitter(asked.name, asked.times, seed=self.seed)
        for name, share in self.faults.items():
            point -= share
            if point < 0:
                return name
        return None

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class _Connection(asyncio.Protocol):
    """A connection of HTTP/1.1, with one request at a time."""

    def __init__(self, server: StubServer) -> None:
        self._server, self._came, self._length = server, bytearray(), -1
        self._sending: set[asyncio.Future[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        while True:
            if self._length < 0:
                self._start = self._came.find(b"\r\n\r\n") + 4
                if self._start < 4:
                    return
                self._head = bytes(self._came[: self._start]).decode("latin-1")
                self._length = int(_header(self._head, "content-length") or 0)
            if len(self._came) < self._start + self._length:
                return
            body = bytes(self._came[self._start : self._start + self._length])
            del self._came[: self._start + self._length]
            self._length = -1
            task = asyncio.ensure_future(self._send(self._server.answer(body, _header(self._head, "authorization"))))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._sending:
            task.cancel()

    async def _send(self, reply: StubReply) -> None:
        await asyncio.sleep(self._server.seconds)
        for seconds, part in reply.parts:
            await asyncio.sleep(seconds)
            self._transport.write(part)
        if reply.close:
            self._transport.close()


def _header(head: str, name: str) -> str:
    lines = (line.partition(":") for line in head.split("\r\n")[1:])
    return next((value.strip() for said, _, value in lines if said.lower() == name), "")
