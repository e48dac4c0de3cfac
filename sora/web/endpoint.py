"""The address of a server and its key, which is read from the environment and shown nowhere."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from sora.gate.credentials import MASK
from sora.gate.forms import shown

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")


class Endpoint:
    """A server that requests are sent to, by https, or by http on this machine alone.

    url: such as https://api.example.org/v1 or http://127.0.0.1:8000/v1, without a user, a query and a fragment. key_variable: the *name* of
    the environment variable that holds the key (None: no key is sent). key_name: the configuration's key for the URL, for messages.

    Raises:
        ValueError: the URL is of another form, or the environment has no such variable, or it holds no key.
    """

    def __init__(self, url: str, *, key_variable: str | None = None, key_name: str = "url") -> None:
        self.url, self.key_name = url.rstrip("/"), key_name
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ValueError(f"{key_name}={shown(url)} is no URL; write https://HOST/v1") from None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(f"{key_name}: the URL holds a user, a query or a fragment; give the server's address alone")
        host = parts.hostname or ""
        named = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(named) or not _PATH.fullmatch(parts.path):
            raise ValueError(f"{key_name}={shown(url)} is no address of a server; write https://HOST/v1, or http://127.0.0.1:PORT/v1")
        if parts.scheme == "http" and not loopback(host):
            why = "http sends pictures, prompts and keys in the clear, so it is for this machine alone"
            raise ValueError(f"{key_name}={shown(url)}: {why}; use https, or a tunnel: ssh -L PORT:{host}:{port or 80} {host}")
        self.scheme, self.host, self.port, self.path = parts.scheme, host, port, parts.path
        self.named = named if port is None else f"{named}:{port}"
        self._key = _key(key_variable)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def __reduce__(self) -> str:
        raise TypeError("an Endpoint holds a key, and is not passed to another process")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every request. Compressed answers are not asked for."""
        said = [("Host", self.named), ("Content-Type", "application/json"), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
        said += [("User-Agent", "sora")] + ([("Authorization", f"Bearer {self._key}")] if self._key else [])
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in said]

    def scrubbed(self, text: str) -> str:
        """A text in which the key, if a server echoes it, is replaced by ***."""
        return text.replace(self._key, MASK) if self._key else text


def loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address alone; nothing is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not _VARIABLE.fullmatch(variable):  # perhaps the key itself: it is not repeated
        raise ValueError("key_variable is the name of an environment variable, such as OPENAI_API_KEY, and never the key itself")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"key_variable={variable}: the environment has no {variable}; export it, or set key_variable=null for no key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"key_variable={variable}: what {variable} holds is no key: it has a space or a character that no header takes")
    return key
