"""The dashed options of a command line, apart from its overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sora.config.words import listed, meant
from sora.gate import credentials, trust


@dataclass
class Flags:
    """The dashed options of a command line; everything else on it is KEY=VALUE."""

    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)
    help: bool = False
    version: bool = False
    multirun: bool = False
    show: bool = False

    def again(self) -> list[str]:
        """The dashed options that another process needs for the same overrides."""
        folders = [f"--config-dir={folder.resolve()}" for folder in self.folders]
        return [*folders, *(f"--allow={trust.absolute(place)}" for place in self.allow)]


def parse(words: Sequence[str]) -> Flags:
    """Sort a command line into dashed options and overrides, in any order. Raises ValueError for an option that does not exist."""
    flags, rest = Flags(), list(words)
    plain = {"--help": "help", "-h": "help", "--version": "version", "--multirun": "multirun", "-m": "multirun"}
    valued = {"--config-dir": "folders", "-cd": "folders", "--cfg": "show", "-c": "show", "--allow": "allow"}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
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
    return flags
