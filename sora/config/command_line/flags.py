"""The dashed options of a command line and its own modules, separate from its overrides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sora.config.command_line.grammar import cut
from sora.config.own import KEY, names_of, words_for
from sora.config.words import listed, meant
from sora.gate import credentials, trust
from sora.system.own_modules import named

CONFIG_DIR = "SORA_CONFIG_DIR"  # environment variable: folders of options for every command, one a line


@dataclass
class Flags:
    """The dashed options of a command line, and the modules of `own=`; all other words are KEY=VALUE."""

    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    help: bool = False
    version: bool = False
    multirun: bool = False
    show: bool = False

    def again(self) -> list[str]:
        """The dashed options and own modules with which another process can compose the same overrides."""
        from sora.config.command_line.commands import spelled

        folders = [f"--config-dir={folder.resolve()}" for folder in self.folders]
        own = [f"{KEY}={spelled(words_for(list(named())))}"] if named() else []
        return [*folders, *(f"--allow={trust.absolute(place)}" for place in self.allow), *own]


def parse(words: Sequence[str]) -> Flags:
    """Sort a command line into dashed options and overrides, in any order. Raises ValueError for an option that does not exist."""
    flags, rest = Flags(), list(words)
    plain = {"--help": "help", "-h": "help", "--version": "version", "--multirun": "multirun", "-m": "multirun"}
    valued = {"--config-dir": "folders", "-cd": "folders", "--cfg": "show", "-c": "show", "--allow": "allow"}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.lstrip("+") == KEY and equals:
            flags.own += names_of(value)
        elif not word.startswith("-"):
            flags.overrides.append(word)
        elif word in plain:
            setattr(flags, plain[word], True)
        elif name in valued:
            if not equals and not rest:
                wanted = {"show": "job", "folders": "FOLDER", "allow": "PLACE"}
                raise ValueError(f"{name} needs a value: {name} {wanted[valued[name]]}")
            value = value if equals else rest.pop(0)
            if valued[name] == "folders":
                credentials.refuse(value, said_by=name)
                flags.folders.append(Path(value))
            elif valued[name] == "allow":
                flags.allow.append(value)
            elif value != "job":
                raise ValueError(f"{name} {value}: the configuration that can be shown is 'job'")
            else:
                flags.show = True
        else:
            known = ["--help", "--version", "--multirun", "--config-dir", "--allow", "--cfg"]
            raise ValueError(f"there is no option {name}{meant(name, known)}; the options: {listed(known)}; keys are set as KEY=VALUE")
    if flags.multirun and len(flags.own) and any(len(cut(word.partition("=")[2])) > 1 for word in words if word.startswith(f"{KEY}=")):
        raise ValueError(f"{KEY}= is not swept over: name all modules in one list, {KEY}=[{','.join(flags.own)}]")
    there = {folder.resolve() for folder in flags.folders}
    flags.folders += [folder for folder in usual_folders() if folder.resolve() not in there]
    return flags


@contextmanager
def passed_on(folders: Sequence[Path]) -> Iterator[None]:
    """A context in which commands that this process starts take options from these folders, too."""
    before = os.environ.get(CONFIG_DIR)
    if folders:
        os.environ[CONFIG_DIR] = "\n".join(str(folder.resolve()) for folder in folders)
    try:
        yield
    finally:
        os.environ.pop(CONFIG_DIR, None) if before is None else os.environ.__setitem__(CONFIG_DIR, before)


def usual_folders() -> list[Path]:
    """The folders of options in the environment variable. Raises ValueError for a path that is no folder."""
    folders = [Path(line.strip()).expanduser() for line in os.environ.get(CONFIG_DIR, "").splitlines() if line.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"the variable {CONFIG_DIR} names {folder}, which is not a folder; set it to folders of options, one a line")
    return folders
