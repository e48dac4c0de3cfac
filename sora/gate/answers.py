"""Limits on the answers of HTTP hosts: no more bytes than asked for, within a time, and only from the user's host or a public one.

The user chose the host in a URL; its answers are not trusted. These are settings for the aiohttp sessions that fsspec opens.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from sora.gate.hosts import UnfitAnswer, refuse_slow

PAGE = 16 << 20  # bytes of an answer to a request without a range, such as a list of files
SILENT = 30.0  # seconds until the first headers, and between two parts of an answer
REQUEST = 300.0  # seconds of a whole request


def settings(url: str) -> dict[str, Any]:
    """Settings for aiohttp.ClientSession: the environment's proxies, the passwords in ~/.netrc, and the limits of this module."""
    watch = aiohttp.TraceConfig()
    named = URL(url).host

    async def look(session: Any, context: SimpleNamespace, asked: aiohttp.TraceRequestRedirectParams) -> None:
        place = asked.response.headers.get("Location") or asked.response.headers.get("URI") or ""
        await refuse_redirect(asked.url, asked.url.join(URL(place)), named)

    watch.on_request_redirect.append(look)
    limits = aiohttp.ClientTimeout(total=REQUEST, sock_connect=SILENT, sock_read=SILENT)
    # No compression: a small compressed answer may unpack to any size.
    plain = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
    return {"trust_env": True, "timeout": limits, "response_class": Answer, "trace_configs": [watch], **plain}


async def refuse_redirect(asked: URL, place: URL, named: str | None) -> None:
    """Raise UnfitAnswer for a redirect from the user's host to this machine or its private network (a cloud's metadata, a router), or to
    another scheme."""
    if place.scheme not in ("http", "https") or (asked.scheme, place.scheme) == ("https", "http"):
        raise UnfitAnswer(f"{asked.host} redirects from {asked.scheme} to {place.scheme or 'nowhere'}, which is not followed")
    if place.host is None or place.host == named:
        return
    try:
        found = await asyncio.get_running_loop().getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError:
        raise UnfitAnswer(f"{asked.host} redirects to {place.host}, which is no host") from None
    if not all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found):
        raise UnfitAnswer(f"{asked.host} redirects to {place.host}, which lies in this machine's own network; name that place yourself")


class Answer(aiohttp.ClientResponse):
    """A response of which no more is read than the request asked for, and only while it comes fast enough."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Start as aiohttp's response, with a time limit, because headers may come letter by letter."""
        async with asyncio.timeout(SILENT):
            return await super().start(connection)

    async def read(self) -> bytes:
        """The body; if it is longer than the requested range, only enough of it to show that."""
        if self._body is None:
            self._body = await self._bounded()
        return self._body

    async def _bounded(self) -> bytes:
        said = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
        most = int(said[2]) - int(said[1]) + 1 if said else PAGE
        parts, size, began = list[bytes](), 0, time.monotonic()
        while size <= most and (part := await self.content.read(1 << 20)):
            parts.append(part)
            size += len(part)
            refuse_slow(size, time.monotonic() - began, str(self.url))
        if size <= most:
            self.release()
            return b"".join(parts)
        self.close()  # do not wait for the rest
        if said is None or self.status == 206:
            raise UnfitAnswer(f"{self.url} gives more than the {most} bytes that were asked for, or that a list of files may have")
        return b"".join(parts)[: most + 1]
