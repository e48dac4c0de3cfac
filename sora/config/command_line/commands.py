"""Commands for messages: a user can copy them into a shell, whatever characters the paths contain."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.config.check import flatten
from sora.config.command_line.grammar import quoted, typed
from sora.config.own import KEY, in_use, words_for

BUILDING = ("encode", "evaluate", "export", "plan", "recaption", "sample", "train")  # verbs that build the objects of a configuration
_PLAIN = re.compile(r"[^\s,'\"()\[\]{}\\][^,'\"()\[\]{}\\]*(?<!\s)")  # a list's element that needs no quotes


def command(verb: str, *words: str | Path, **values: Any) -> str:
    """`sora VERB WORDS… KEY=VALUE…` as typed into a shell.

    words: whole words, such as `experiment=laptop`, and paths without a key. values: keys and their values (text, a path, a number or a
    list of these); a dot in a key is written as two underscores. For verbs that may build them, `own=` names the own modules that this
    command has imported, unless `own` is given.
    """
    if verb in BUILDING and KEY not in values and (names := in_use()):
        values[KEY] = words_for(names)
    said = [f"{key.replace('__', '.')}={spelled(_here(value))}" for key, value in values.items()]
    return " ".join(["sora", verb, *(_shell(_bare(word) if isinstance(word, Path) else word) for word in (*words, *said))])


def spelled(value: Any) -> str:
    """A value as the command line reads it: a list in brackets, its elements in quotes where needed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_element(item) for item in value)}]"
    return typed(str(value)) if isinstance(value, str | Path) else "null" if value is None else str(value)


def _here(value: Any) -> Any:
    """A name in this folder that begins with `~`, written so that it is not read as the home folder."""
    if isinstance(value, list | tuple):
        return [_here(item) for item in value]
    return f"./{value}" if isinstance(value, str | Path) and str(value).startswith("~") else value


def _bare(path: Path) -> str:
    """A path without a key, written so that no part of its name is read as an option or a key."""
    word = str(path)
    return f"./{word}" if not path.is_absolute() and (word[:1] in ("~", "-") or "=" in word.partition("/")[0]) else word


def _element(value: Any) -> str:
    if not isinstance(value, str | Path):
        return spelled(value)
    return str(value) if _PLAIN.fullmatch(str(value)) else quoted(str(value))


def _shell(word: str) -> str:
    """The word, in quotes only if a shell would change it. Brackets stay as typed, except in zsh, which reads them as a file pattern and
    refuses the line."""
    plain = r"[\w@%+=:,./-]+" if os.environ.get("SHELL", "").endswith("zsh") else r"[\w@%+=:,./\[\]-]+"
    return word if re.fullmatch(plain, word, re.ASCII) else shlex.quote(word)


def option_words(group: str, node: DictConfig | dict[str, Any], options: Mapping[str, Path]) -> tuple[str, ...]:
    """The words that choose a group's option and set what differs from its file: `text=minilm text.max_tokens=64`.

    node: the group's part of a configuration. options: the group's files by name. Returns () if no file has the same `_target_`.
    """
    wanted = flatten(node)
    best: tuple[str, ...] | None = None
    for name, path in sorted(options.items()):
        own = flatten(_plain(path))
        if own.get("_target_") != wanted.get("_target_") or own.keys() != wanted.keys():
            continue
        words = (f"{group}={name}", *(f"{group}.{key}={spelled(value)}" for key, value in wanted.items() if own[key] != value))
        if best is None or len(words) < len(best):
            best = words
    return best or ()


def _plain(path: Path) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return tree
