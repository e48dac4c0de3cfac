"""Models of the Hugging Face hub as local folders, and transformers models from them, without running code from the hub.

The hub is contacted only for a model that the command line names, and only at a revision. A model that a stored configuration names is read
from the local cache, without a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sora.gate import trust
from sora.system import terminal
from sora.system.files import read_json

SCHEME, PACKAGE = "hf://", "package:"
ID = re.compile(r"[\w.-]+/[\w.-]+")
# Keys of a config.json whose values may name kernels on the hub, which are programs.
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")

_STANDS = ContextVar[tuple[tuple[str, str], ...]]("_STANDS", default=())  # (model on the hub, key that names it)


def snapshot(source: str, revision: str | None, patterns: Sequence[str], *, key: str, instead: str) -> Path:
    """The local folder of a model's files. patterns: of the file names. key: whose value `source` is, such as text.source. instead: an
    alternative that needs no hub, for messages.

    Raises:
        ValueError: the model is not in the local cache, and the command line did not name it, no revision is given, or the hub does not
            return it; the message says which.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    asked = trust.allowed(f"{SCHEME}{source}") and revision is not None
    try:
        with terminal.steered():  # it shows progress bars of a download
            return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns), local_files_only=not asked))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        told = f"{key}={source} (revision {revision}) is no local folder"
        download = f"hf download {source}{f' --revision {revision}' if revision else ''}"
        if not ID.fullmatch(source):
            raise ValueError(f"{told}, and no name of a model of the Hugging Face hub; name its folder, or {instead}") from None
        if asked:
            raise ValueError(
                f"{told} and cannot be had from the Hugging Face hub: {error}. Download it where there is a network ({download}), name its "
                f"folder, or {instead}"
            ) from error
        if revision is None:
            pins = [f"{place}.revision" for named, place in _STANDS.get() if named == source] or [f"{key.rpartition('.')[0]}.revision"]
            commit, newest = (" ".join(f"{pin}={word}" for pin in pins) for word in ("COMMIT", "main"))
            raise ValueError(
                f"{told} and not in the hub's local cache; what is downloaded without a revision may be another model tomorrow: name a "
                f"commit ({commit}; the model's page lists them), or the newest on purpose ({newest}), or download it first ({download}), "
                f"or {instead}"
            ) from None
        raise ValueError(
            f"{told} and not in the hub's local cache, and this command line did not name it: download it first ({download}), or allow "
            f"the connection with {trust.words(f'{SCHEME}{source}')}, or {instead}"
        ) from None


@contextmanager
def named(tree: Any) -> Iterator[tuple[str, ...]]:
    """The models of the hub that a composed configuration names, as hf://OWNER/NAME. Inside the context, error messages give their keys."""
    found = tuple(_named(tree, ""))
    before = _STANDS.set(found)
    try:
        yield tuple(f"{SCHEME}{source}" for source, _ in found)
    finally:
        _STANDS.reset(before)


def _named(node: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        source = node.get("source")
        if "_target_" in node and isinstance(source, str) and not source.startswith(PACKAGE) and ID.fullmatch(source):
            yield source, place
        inner = node.items()
    else:
        inner = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in inner:
        yield from _named(value, f"{place}.{key}" if place else str(key))


def pretrained(kind: str, folder: Path, *, key: str, **settings: Any) -> Any:
    """`from_pretrained` of a transformers class, with local files only. Code in the folder is never run, and nothing asks for input.

    Raises:
        ValueError: the folder names code, kernels of the hub or another model, or does not fit the class.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # commands show their own
    refuse_programs(folder, key=key)
    return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def refuse_programs(folder: Path, *, key: str) -> None:
    """Raise ValueError if a model's folder names another model (of an adapter), or kernels of the hub, which are programs."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{key}: {folder} holds adapter_config.json, an adapter of a model that lies elsewhere; name the whole model")
    path = folder / "config.json"
    told = read_json(path) if path.is_file() else {}
    stack = [told]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict):
            continue
        for name in KERNELS:
            if "/" in str(node.get(name, "")):
                raise ValueError(f"{key}: {path} names {name}={node[name]!r}, kernels of the hub, which are programs; take that key out")
        stack += node.values()
