"""One request and its answer, within limits on time and bytes that hold for the whole answer, however slowly or densely it comes.

Requests go over `httpcore2`, the transport below `httpx2`. It follows no redirect, keeps no cookie, and reads neither proxies nor
passwords from the environment, so there is nothing to switch off; and it takes about two thirds of the processor time of the client
above it.
"""

from __future__ import annotations

import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpcore2

from sora.gate.forms import shown
from sora.web.endpoint import Endpoint
from sora.web.limits import AnswerLimits

_PIECE = 1 << 16  # bytes that are unpacked at once
_PACKED = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's window bits for each content encoding


class AskFailed(ConnectionError):
    """Raised if a server gave no answer that can be used. again: whether another try may help. busy: whether the server has too much to do.
    wait: seconds that it asked to wait (None: it did not say)."""

    def __init__(self, why: str, *, again: bool = False, busy: bool = False, wait: float | None = None) -> None:
        super().__init__(why)
        self.again, self.busy, self.wait = again, busy, wait


class HttpAnswer(NamedTuple):
    """An answer: its status, its headers by lower-case name, and its body, unpacked."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


class Connections:
    """Connections to one server, one for each thread that posts: a pool that threads share looks through all of its connections for each
    request, under a lock."""

    def __init__(self, endpoint: Endpoint, limits: AnswerLimits) -> None:
        self.endpoint, self.limits = endpoint, limits
        self._tls = httpcore2.default_ssl_context() if endpoint.scheme == "https" else None
        self._own, self._pools = threading.local(), list[httpcore2.ConnectionPool]()
        self._url = httpcore2.URL(scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, target="/")
        self._headers, self._clock = endpoint.headers(), _Clock()
        self._backend = _Timed(self._clock)
        silent = limits.silent_seconds
        self._timeouts = {"timeout": {"connect": limits.connect_seconds, "read": silent, "write": silent, "pool": limits.total_seconds}}

    def post(self, path: str, body: bytes) -> HttpAnswer:
        """The answer to a POST of a body to a path below the endpoint's. Raises AskFailed if there is none within the limits."""
        target = httpcore2.URL(scheme=self._url.scheme, host=self._url.host, port=self._url.port, target=f"{self.endpoint.path}{path}")
        headers = [*self._headers, (b"Content-Length", str(len(body)).encode("ascii"))]
        self._clock.until = time.monotonic() + self.limits.total_seconds
        with self._told(), self._pool().stream("POST", target, headers=headers, content=body, extensions=self._timeouts) as response:
            found = {name.decode("ascii", "replace").lower(): value.decode("latin-1") for name, value in response.headers}
            if 300 <= response.status < 400:
                raise AskFailed(self._redirects(response.status, found))
            return HttpAnswer(response.status, found, self._body(found, response.iter_stream()))

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            pool.close()

    def _pool(self) -> httpcore2.ConnectionPool:
        """This thread's connection."""
        if (found := getattr(self._own, "pool", None)) is None:
            found = self._own.pool = httpcore2.ConnectionPool(self._tls, max_connections=1, network_backend=self._backend)
            self._pools.append(found)
        return found

    def _body(self, headers: Mapping[str, str], parts: Iterable[bytes]) -> bytes:
        most, said = self.limits.most_bytes, headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > most:
            raise self._too_large()
        body = bytearray()
        for part in unpacked(parts, headers.get("content-encoding", "")):
            body += part
            if len(body) > most:
                raise self._too_large()
            if time.monotonic() > self._clock.until:
                raise self._late()
        return bytes(body)

    def _too_large(self) -> AskFailed:
        return AskFailed(f"{self.endpoint.named} answers with more than the {self.limits.most_bytes:,} bytes of most_bytes", again=True)

    def _late(self) -> AskFailed:
        return AskFailed(
            f"{self.endpoint.named} took longer than the {self.limits.total_seconds:g} s of total_seconds", again=True, busy=True
        )

    def _redirects(self, status: int, headers: Mapping[str, str]) -> str:
        try:
            place = urlsplit(headers.get("location", "")).hostname or self.endpoint.named
        except ValueError:
            place = "a place that is no URL"
        named = f"{self.endpoint.named} answers {status} and points to {shown(place)}"
        return f"{named}; nothing is sent there: if you mean that server, name it in {self.endpoint.key_name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A context in which errors of the transport become AskFailed with a reason for people."""
        named = self.endpoint.named
        try:
            yield
        except (httpcore2.ConnectTimeout, httpcore2.ConnectError) as error:
            raise AskFailed(f"{named} does not answer ({_reason(error)})", again=True) from None
        except httpcore2.TimeoutException:
            if time.monotonic() >= self._clock.until:
                raise self._late() from None
            raise AskFailed(f"{named} said nothing for {self.limits.silent_seconds:g} s", again=True, busy=True) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise AskFailed(f"{named} broke the connection off, or speaks no HTTP ({_reason(error)})", again=True) from None


def _reason(error: Exception) -> str:
    return shown(str(error))[:200].strip("'\"") or type(error).__name__


def unpacked(parts: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The parts of a body, unpacked a few bytes at a time, so that a small answer cannot become a large one before somebody counts.

    Raises AskFailed for an encoding other than gzip and deflate, for several, and for a damaged body.
    """
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        yield from parts
        return
    if kind not in _PACKED:
        raise AskFailed(f"the answer is packed as {shown(encoding)}, which was not asked for and is not read")
    unpack = zlib.decompressobj(_PACKED[kind])
    try:
        for part in parts:
            left = part
            while left and not unpack.eof:
                yield unpack.decompress(left, _PIECE)
                left = unpack.unconsumed_tail
    except zlib.error as error:
        raise AskFailed(f"the answer does not unpack ({error})", again=True) from None
    if not unpack.eof:
        raise AskFailed("the packed answer ends early", again=True)


class _Clock(threading.local):
    """When the answer that this thread waits for must be whole, in seconds of the monotonic clock."""

    until = 0.0


class _Timed(httpcore2.SyncBackend):
    """Opens connections whose every read and write ends with the clock of the thread that waits for it."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        return _TimedStream(super().connect_tcp(host, port, timeout, local_address, socket_options), self._clock)


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose reads and writes share what the clock leaves, so that bytes that come one by one do not start it anew."""

    def __init__(self, inner: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._inner, self._clock, self._socket = inner, clock, inner.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._socket.settimeout(self._left(timeout))
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout(str(error)) from None
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = memoryview(buffer)
        try:
            while left:
                self._socket.settimeout(self._left(timeout))
                left = left[self._socket.send(left) :]
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from None
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from None

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _left(self, timeout: float | None) -> float:
        left = self._clock.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if timeout is None else min(left, timeout)
