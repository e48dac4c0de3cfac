"""What a host of http may answer: as many bytes as it was asked for, in a time, from where the user said or from a public place.

The host that a URL names is the user's word; what it answers is not. Settings for aiohttp's sessions, as fsspec opens them.
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

PAGE = 16 << 20  # bytes of an answer that no range was asked of, such as a list of files
SILENT = 30.0  # seconds until the first headers are there, and between two parts of an answer
REQUEST = 300.0  # seconds of any request


def settings(url: str) -> dict[str, Any]:
    """For aiohttp.ClientSession: the proxies of the environment, the names and passwords of ~/.netrc, and the limits of this module."""
    watch = aiohttp.TraceConfig()
    named = URL(url).host

    async def look(session: Any, context: SimpleNamespace, asked: aiohttp.TraceRequestRedirectParams) -> None:
        place = asked.response.headers.get("Location") or asked.response.headers.get("URI") or ""
        await refuse_redirect(asked.url, asked.url.join(URL(place)), named)

    watch.on_request_redirect.append(look)
    limits = aiohttp.ClientTimeout(total=REQUEST, sock_connect=SILENT, sock_read=SILENT)
    # As it is stored: what is packed may unpack to anything.
    plain = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
    return {"trust_env": True, "timeout": limits, "response_class": Answer, "trace_configs": [watch], **plain}


async def refuse_redirect(asked: URL, place: URL, named: str | None) -> None:
    """Raise UnfitAnswer for a redirect that leaves the host that the user named for one of this machine or of its own network (a cloud's
    metadata, a router), or for another scheme."""
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
    """A response that is read as far as the request asked, and as long as it comes at a pace."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """As aiohttp's, within a time: headers may come a letter at a time."""
        async with asyncio.timeout(SILENT):
            return await super().start(connection)

    async def read(self) -> bytes:
        """The body, or as much of it as shows that it is longer than a range that was asked for."""
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
        self.close()  # the rest is not waited for
        if said is None or self.status == 206:
            raise UnfitAnswer(f"{self.url} gives more than the {most} bytes that were asked for, or that a list of files may have")
        return b"".join(parts)[: most + 1]
