"""A user's own modules in runs: which modules a run uses, how a command must name them to rebuild the run, and which have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.config import own
from sora.config.targets import OTHERS, TARGET
from sora.system import own_modules
from sora.system.files import file_hash
from sora.system.started import started
from sora.system.terminal import say

if TYPE_CHECKING:
    from sora.runs.run import Run


def modules_in(tree: Any) -> list[str]:
    """The modules that the targets of a configuration name, without those of sora and of the libraries that it allows."""
    found: list[str] = []
    if isinstance(tree, Mapping):
        target = tree.get(TARGET)
        if isinstance(target, str) and target not in OTHERS and not target.startswith("sora.") and "." in target:
            found.append(target.rpartition(".")[0])
        for value in tree.values():
            found += modules_in(value)
    elif isinstance(tree, list):
        for value in tree:
            found += modules_in(value)
    return list(dict.fromkeys(found))


def load_used(config: Any) -> None:
    """Import the own modules of a configuration, so that a mistake in one is reported before anything heavy starts."""
    for module in modules_in(config):
        if module in own_modules.named():
            own.load(module)


def require(run: Run, *parts: str) -> None:
    """Raise ValueError with the modules that a run's configuration uses and this command does not name. Print which of their files differ
    from the run's record.

    parts: keys of the configuration, such as "dit", that are about to be built; none for all.
    """
    config, kept = run.config, run.info.get("own", {})
    building = [config.get(part) for part in parts] if parts else config
    used = modules_in(building)
    if not used:
        return
    helpers = [name for name in kept if name not in modules_in(config)]  # modules that the named ones import
    absent = [name for name in (*used, *helpers) if name not in own_modules.named() and name.partition(".")[0] not in own.UNCALLED]
    if absent:
        raise ValueError(f"{run.config_file} uses {_uses(absent)}, code that is none of sora's{_how(run, absent, kept)}")
    for name in kept:
        for label, known in kept[name]["files"].items() if name in own_modules.named() else ():
            path = own_modules.file_of(name, label)
            now = "gone" if path is None or not path.is_file() else file_hash(path)
            if now != known and started().rank == 0:
                changed = f"has changed since {run.folder} recorded it ({known[:12]} then, {now[:12]} now)"
                say(f"beware: {label} of the own module {name} {changed}")
    load_used(building)


def _uses(names: Sequence[str]) -> str:
    return f"the module{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def _how(run: Run, names: Sequence[str], kept: Mapping[str, Any]) -> str:
    """Advice on how to name the missing modules."""
    from sora.config.command_line.commands import command

    if not run.own:
        trust = "look at that code first, and name it with own= if you trust it"
        return f", and no command of yours wrote that, so nothing of it is imported; {trust}"
    words = [_lies(run, word) if own_modules.is_path(word) else word for word in own.words_for(names, kept)]
    gone = [word for word in words if own_modules.is_path(word) and not Path(word).is_file()]
    lost = f" (no file is called {gone[0]} now: say where it lies)" if gone else ""
    return f"; add {command('', own=words).removeprefix('sora').strip()}{lost}"


def _lies(run: Run, file: str) -> str:
    """The present path of a file in a run's record, which may have moved together with the run."""
    from sora.runs.places import candidates

    return str(next((path for path in candidates(run, file) if path.is_file()), file))


def needed(info: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words that a command needs to rebuild a run, by key; empty if the run uses only sora's parts. info: the content of run.json."""
    kept = info.get("own", {})
    return {own.KEY: own.words_for(list(kept), kept)} if kept else {}


def needed_by(folder: Path) -> dict[str, list[str]]:
    """`needed` of the run in a folder; empty if it is no run."""
    from sora.runs.run import open_run

    return needed(open_run(folder).info) if (folder / "run.json").is_file() else {}
