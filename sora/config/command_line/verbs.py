"""The verbs of the command line, read from the source of their modules without importing them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sora
from sora.config.words import meant


@dataclass(frozen=True)
class Verb:
    """A verb, read from the source of its command module.

    actions: keys that may be written as a word before their value: `sora data check FOLDER` for `sora data check=FOLDER`. module: in
    `sora.`; the module of a verb that has a room's name is `ROOM_command`. bare: the key for leading words without KEY=: `sora compare A B`
    for `sora compare scores=[A,B]`.
    """

    name: str
    line: str
    about: str
    examples: tuple[str, ...]
    actions: tuple[str, ...] = ()
    module: str = ""
    bare: tuple[str, ...] = ()


@cache
def verbs() -> dict[str, Verb]:
    """The command modules of this package, which are those with EXAMPLES. Nothing is imported."""
    found = {}
    for path in sorted(Path(sora.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {name: _said(tree, name) for name in ("EXAMPLES", "ACTIONS", "BARE")}
        if said["EXAMPLES"]:
            about, name = ast.get_docstring(tree) or "", path.stem.removesuffix("_command")
            found[name] = Verb(name, about.partition("\n")[0], about, said["EXAMPLES"], said["ACTIONS"], path.stem, said["BARE"])
    return dict(sorted(found.items()))


def _said(tree: ast.Module, constant: str) -> tuple[str, ...]:
    """The texts in a constant of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(name, ast.Name) and name.id == constant for name in node.targets):
            return tuple(ast.literal_eval(node.value))
    return ()


def worded(verb: Verb, words: Sequence[str]) -> list[str]:
    """Rewrite `check FOLDER` to `check=FOLDER` for a verb's actions, and `A B` to a list for a verb that takes one. Raises ValueError for
    an action without a value, or a mistyped one."""
    if verb.bare and (places := [word for word in words if _bare(verb, word)]):
        from sora.config.command_line.grammar import quoted

        if twice := next((word for word in words if word.startswith(f"{verb.bare[0]}=")), None):
            raise ValueError(f"{twice} beside {places[0]}: give all as plain words, or all in {verb.bare[0]}=[…]")
        return [f"{verb.bare[0]}=[{','.join(map(quoted, places))}]", *(word for word in words if word not in places)]
    if not words or words[0] not in verb.actions:
        if words and words[0].isalpha() and (near := meant(words[0], verb.actions)):
            raise ValueError(f"{words[0]!r} is no KEY=VALUE, and sora {verb.name} begins with no such word{near}")
        return list(words)
    if len(words) == 1 or words[1].startswith("-"):
        raise ValueError(f"{words[0]} needs a value: sora {verb.name} {words[0]} FOLDER")
    return [f"{words[0]}={words[1]}", *words[2:]]


def _bare(verb: Verb, word: str) -> bool:
    """Whether a word is a value without a key: it has no `=`, or the part before that is no key of the verb, as in the name of a sweep's
    folder, density=uniform,seed=0. To name a folder that looks like a key, write `./NAME`."""
    key, equals, _ = word.partition("=")
    return not equals or (key not in _keys(verb.name) and ("/" in key or Path(word).exists()))


@cache
def _keys(verb: str) -> set[str]:
    """The keys of a verb's own file, for verbs without groups."""
    import yaml

    from sora.config.compose import primaries

    return {str(key) for path in primaries(verb) for key in yaml.safe_load(path.read_text(encoding="utf-8"))}
