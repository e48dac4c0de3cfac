"""The page that `sora VERB --help` prints: what the verb does, its groups and options, its keys with their values, examples."""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.config.command_line.notes import comments
from sora.config.compose import Composed, config_dir, groups, primaries
from sora.config.experiments import files_of
from sora.config.own import definitions
from sora.config.targets import TARGET, Definition, parameters
from sora.system.own_modules import named

if TYPE_CHECKING:
    from sora.config.command_line.verbs import Verb

FLAGS = """\
  --config-dir FOLDER   also take options and experiments from FOLDER (laid out like conf/); always: the variable SORA_CONFIG_DIR
  own=[MODULE,FILE.py]  also take functions and classes of your own, called MODULE.NAME (docs/own_code.md); always: SORA_OWN
  --allow PLACE         let this command read a folder, file or URL, or a model of the hub (hf://OWNER/NAME), that a run or a dataset
                        names and that no command of yours named (docs/security.md)
  -m, --multirun        run every combination of KEY=a,b,c and GROUP=x,y
  --cfg job             print the configuration that would run, and stop
  --help, --version"""
VALUES = """\
  text and paths   as they stand, to the end of the word: output=2026_11_29, prompt="it's late, a cat sleeps"; ~/ is your home
  lists            [a cat, b, [1, 2], 'with, comma']        mappings   {short: 0.7, dense: 0.3}        nothing   null
  quotes           'a, b' keeps commas and brackets, 'null' is the word; with -m, commas outside of quotes and brackets split the sweep
  <…>              what a key takes: <path>, <out> a path that is written, <[text]> a list, <{number}> a mapping, <text|number> either"""


def page(verb: Verb, composed: Composed, folders: Sequence[Path] = (), *, colour: bool = False) -> str:
    """The help page of a verb, for the choices in `composed`."""
    available = groups([config_dir(), *folders])
    width = max(70, min(shutil.get_terminal_size((100, 30)).columns, 140))

    def heading(text: str) -> str:
        return f"\033[1m{text}\033[0m" if colour else text

    parts = [heading(f"sora {verb.name}") + f"   {verb.about}", f"usage: sora {verb.name} [GROUP=OPTION ...] [KEY=VALUE ...]"]
    chosen = {group: option for group, option in composed.choices.items() if group in available}
    if chosen:
        parts.append("\n".join([heading("GROUPS") + " (* is in force)", *_groups(chosen, available, width)]))
    notes = comments(
        [*primaries(verb.name), *(path for g, o in chosen.items() if o is not None for path in files_of(g, o, available))], chosen
    )
    parts.append("\n".join([heading("KEYS") + " (with the values in force)", *_keys(composed.keys, notes, width)]))
    if made := _own(width):
        parts.append("\n".join([heading("OWN") + " (what the modules of own= define)", *made]))
    parts.append("\n".join([heading("VALUES"), VALUES]))
    parts.append("\n".join([heading("OPTIONS"), FLAGS]))
    parts.append("\n".join([heading("EXAMPLES"), *(f"  {example}" for example in verb.examples)]))
    return "\n\n".join(parts)


def _groups(chosen: dict[str, str | None], available: dict[str, dict[str, Path]], width: int) -> list[str]:
    wide = max(len(group) for group in chosen)
    lines = []
    for group, option in chosen.items():
        names = " ".join(f"*{name}" if name == option else name for name in available[group])
        text = names if option is not None else f"*null {names}"
        lines += textwrap.wrap(text, width, initial_indent=f"  {group:<{wide}}  ", subsequent_indent=" " * (wide + 4))
    return lines


def _own(width: int) -> list[str]:
    """The public classes and functions of the user's own modules, with their parameters and the first line of their docstrings."""
    lines = []
    for module in named():
        for name, nodes in definitions(module).items():
            known = parameters(Definition(module, nodes[0])) or {}
            about = (ast.get_docstring(nodes[0]) or "").partition("\n")[0]
            told = f"{module}.{name}({', '.join(key if item.required else f'[{key}]' for key, item in known.items())})"
            lines += textwrap.wrap(f"{told}   {about}", width, initial_indent="  ", subsequent_indent="      ")
    return lines


def _keys(keys: dict[str, Any], notes: dict[str, str], width: int) -> list[str]:
    shown = {key: _text(value) for key, value in keys.items() if key.rsplit(".", 1)[-1] != TARGET}
    wide = min(44, max((len(f"{key}={value}") for key, value in shown.items()), default=0))
    lines, above = [], ""
    for key, value in sorted(shown.items(), key=lambda item: "." in item[0]):
        if (part := key.partition(".")[0] if "." in key else "") != above:
            lines, above = [*lines, ""], part
        left = f"  {key}={value}"
        note = notes.get(key, "")
        if not note:
            lines.append(left)
            continue
        indent = " " * (wide + 4)
        wrapped = textwrap.wrap(note, max(30, width - wide - 4))
        first = f"{left:<{wide + 4}}{wrapped[0]}" if len(left) < wide + 4 else f"{left}\n{indent}{wrapped[0]}"
        lines += [first, *(f"{indent}{line}" for line in wrapped[1:])]
    return lines


def _text(value: Any) -> str:
    """A value as typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return "…" if value == "???" else str(value)
