"""Recognises credentials in a text by their form, so that no configuration keeps one and none is printed.

These are the user part of a URL, signatures in its query, tokens of services with a known form, and values of names such as password or
api_key.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# All printed text passes through these, also a stranger's megabyte. Each must run in linear time on any text, so a part that may start
# anywhere has a largest length, or is possessive and never backtracks.
# abfs writes CONTAINER@ACCOUNT, which is a credential only if it contains a colon; a URL that was taken for a path has lost a slash
_USER = re.compile(r"(?P<before>(?i:(?P<scheme>[a-z][a-z0-9+.-]{0,30}):(?://|/(?=[^/\s@'\":]++:[^/\s@'\"]++@))))(?P<user>[^/\s@'\"]++)@")
_CONTAINERS = ("abfs", "abfss", "az")
_QUERY = re.compile(
    r"(?P<before>[?&](?i:sig|signature|x-amz-signature|x-amz-security-token|x-amz-credential|awsaccesskeyid|x-goog-signature"
    r"|x-goog-credential|(?:access_|auth_|id_|refresh_)?token|api[-_]?key|key|secret|password)=)(?P<value>[^&\s'\"]+)"
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|(?P<parts>sk-[A-Za-z0-9_-]++)"  # OpenAI, Anthropic and others, if a part of it is long
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}"  # GitHub, GitLab
    r"|wandb_v\d+_[A-Za-z0-9_]{20,}|nvapi-[A-Za-z0-9_-]{20,}|r8_[A-Za-z0-9]{30,}"  # wandb, NVIDIA, Replicate
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}"  # Google
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,}"  # Slack, npm, PyPI
    r"|eyJ[A-Za-z0-9_-]{10,600}\.eyJ[A-Za-z0-9_-]{10,6000}\.[A-Za-z0-9_-]{10,}"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r")"
)
_PART = re.compile(r"[A-Za-z0-9]{16}")
_NAMED = re.compile(
    r"(?P<before>(?<![\w.-])[\w.-]*(?i:_key|token|secret|passw(?:or)?d|apikey)(?:=|['\"]: ?)['\"]?)(?P<value>[^\s'\",;})]+)"
)
_KEY = re.compile(r"(?i:(?:.*_)?(?:api_?key|access_key|secret_key|private_key|auth_key|secret|passw(?:or)?d|token)|.*_key)")
WAYS = {
    "http": "in ~/.netrc, or the file that NETRC names (machine HOST login NAME password …)",
    "https": "in ~/.netrc, or the file that NETRC names (machine HOST login NAME password …)",
    "s3": "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE",
    "gs": "by GOOGLE_APPLICATION_CREDENTIALS, which names a file",
    "gcs": "by GOOGLE_APPLICATION_CREDENTIALS, which names a file",
    "abfs": "in AZURE_STORAGE_CONNECTION_STRING",
    "abfss": "in AZURE_STORAGE_CONNECTION_STRING",
    "az": "in AZURE_STORAGE_CONNECTION_STRING",
    "hf": "in HF_TOKEN",
}
OTHERWISE = "in the environment (WANDB_API_KEY, HF_TOKEN, AWS_ACCESS_KEY_ID, …), or in the file of its own that the service reads"


def masked(text: str) -> str:
    """A text in which each credential is replaced by ***."""
    text = _USER.sub(lambda found: found[0] if _container(found) else f"{found['before']}{MASK}@", text)
    text = _QUERY.sub(rf"\g<before>{MASK}", text)
    text = _TOKEN.sub(lambda found: MASK if _token(found) else found[0], text)
    return _NAMED.sub(lambda found: found[0] if _plain(found["value"]) else f"{found['before']}{MASK}", text)


def refuse(tree: Any, *, said_by: str, place: str = "") -> None:
    """Raise ValueError if a configuration holds a credential. The message names the key and how to pass it, and never the value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            name = f"{place}.{key}".lstrip(".")
            if isinstance(value, str) and value and value not in (MASK, "???") and _KEY.fullmatch(str(key)):
                raise ValueError(f"{said_by}: {name} is a credential by its name, and configurations are kept and passed on; {_way(value)}")
            refuse(value, said_by=said_by, place=name)
    elif isinstance(tree, list | tuple):
        for value in tree:
            refuse(value, said_by=said_by, place=place)
    elif isinstance(tree, str) and (kind := kind_of(tree)) is not None:
        raise ValueError(f"{said_by}: {place or 'a word'} holds {kind}, and configurations are kept and passed on; {_way(tree)}")


def kind_of(text: str) -> str | None:
    """The kind of credential that a text holds; None if there is none."""
    if any(not _container(found) for found in _USER.finditer(text)):
        return "a URL with a user or a password"
    if _QUERY.search(text) and "://" in text:
        return "a URL with a signature or a key"
    return "what has the form of an access token" if any(map(_token, _TOKEN.finditer(text))) else None


def _way(text: str) -> str:
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    return f"give it {WAYS.get(scheme, OTHERWISE)}"


def _token(found: re.Match[str]) -> bool:
    return found["parts"] is None or _PART.search(found["parts"]) is not None


def _container(found: re.Match[str]) -> bool:
    return found["scheme"].lower() in _CONTAINERS and ":" not in found["user"]


def _plain(value: str) -> bool:
    """Whether the value of a name is a number or a common word, and so no secret."""
    return value in ("null", "None", "true", "false", "True", "False", MASK) or value.replace(".", "").replace(",", "").isdecimal()
