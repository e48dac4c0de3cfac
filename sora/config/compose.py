"""Composes a command's configuration from `conf/`; checks every key, and answers every mistake with what exists.

Hydra merges the files; mistakes that it accepts are refused here. The existing keys are those of the composition *without* the experiment
and without the command line's values: other keys from these are mistakes, with `+key=` too. What a typed value means depends on what its
key takes (`sora.config.kinds`), not on its spelling: Hydra reads names of options only, and no values. Experiments choose options and set
keys of their verb (`sora.config.experiments`), so that an option that the command line names brings all values of its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.config.check import check_targets, check_values, flatten, leave_behind, require_given
from sora.config.command_line.grammar import Word, cut, for_hydra, parse
from sora.config.command_line.outputs import refuse_one_place, written
from sora.config.experiments import CHOOSERS, chosen, defaults_of, files_of, own_keys, read, without_experiment
from sora.config.folders import refuse_leading_out
from sora.config.kinds import Kinds, marks, settled, unreadable
from sora.config.options import counted, nested, set_nodes
from sora.config.own_parts import refuse_unlike
from sora.config.targets import TARGET
from sora.config.words import listed, meant
from sora.gate import credentials


@dataclass(frozen=True)
class Composed:
    """A command's configuration, and the option of every group that it is composed of (None: no option).

    said: keys and groups that the command line names, with any value. writes: the paths that the command writes, by key.
    """

    config: DictConfig
    choices: dict[str, str | None]
    keys: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    writes: dict[str, str] = field(default_factory=dict)


def config_dir() -> Path:
    """The folder of the configuration files: inside the package in a wheel, beside it in a checkout.

    It is found from this file and not through importlib, because an editable install leaves a copy in site-packages that grows stale.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ValueError(f"no configuration files in or beside {package}: the installation is broken; install sora again")


def groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The files of each group's options, by name; earlier folders win."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, {}).setdefault(path.stem, path)
    return found


def primaries(verb: str) -> list[Path]:
    """The verb's own file, after those of the verbs that it builds on (`defaults: [train]`)."""
    path = config_dir() / f"{verb}.yaml"
    above = [item for item in defaults_of(path) if isinstance(item, str) and item != "_self_"]
    return [*(found for name in above for found in primaries(name)), path]


def compose(verb: str, arguments: Sequence[str], folders: Iterable[Path] = ()) -> Composed:
    """The checked configuration of `sora VERB ARGUMENTS…`; `folders` add options to those of `conf/`.

    Raises ValueError for every mistake of a user, naming the key or option, and what fits.
    """
    extra = [Path(folder).resolve() for folder in folders]
    for folder in extra:
        if not folder.is_dir():
            raise ValueError(f"--config-dir {folder} is not a folder")
    refuse_leading_out(extra, known=groups([config_dir()]))
    available = groups([config_dir(), *extra])
    loader = Loader(verb, extra)
    typed = [parse(word) for argument in arguments for word in counted(named_file(argument, verb), available)]
    words, nodes = nested(typed, available)
    grouped, valued = _sorted(words, loader, available)
    composed = loader.load([word.option for word in grouped], check_hydra=True)
    tasks = files_of("task", composed.choices.get("task") or "", available)
    reference = without_experiment(composed.config, composed.choices, own_keys([*primaries(verb), *tasks]), available)
    check_targets(reference, "")
    set_nodes(composed.config, nodes)
    source = ", ".join(f"conf/{group}/{option}.yaml" for group, option in chosen(composed.choices).items())
    kinds = kinds_of(verb, Composed(reference, composed.choices), available)
    check_values(composed.config, kinds, said_by=source or "conf")
    known = flatten(composed.config)
    for word in valued:
        if f"{word.key.rpartition('.')[0]}.{TARGET}" not in [other.key for other in valued]:  # else `check_targets` checks the key
            _check_key(word.key, known, composed.choices, kinds, verb)
    config = deepcopy(composed.config)
    leave_behind(config, composed.config, _set(config, valued, kinds))
    check_values(config, kinds, said_by="the command line")
    check_targets(config, "")
    _settle(config, kinds)
    tree = _plain(config)
    refuse_unlike(tree, available)
    credentials.refuse(tree, said_by="the configuration")
    refuse_one_place(tree, kinds)
    said = (*(word.key for word in (*grouped, *valued)), *nodes)
    return Composed(config, composed.choices, known, said, written(tree, kinds))


def kinds_of(verb: str, reference: Composed, available: dict[str, dict[str, Path]]) -> Kinds:
    """What each key takes, from the files of the composition, except for those that only choose options."""
    in_force = {group: option for group, option in reference.choices.items() if option is not None and group not in CHOOSERS}
    files = {path: group for group, option in in_force.items() for path in files_of(group, option, available)}
    return Kinds(_plain(reference.config), marks([*primaries(verb), *files], in_force))


def _plain(config: DictConfig) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(config, resolve=False)
    return tree


def _set(config: DictConfig, words: Sequence[Word], kinds: Kinds) -> set[str]:
    """Set keys to the typed values; return every key that was given, those inside nodes by dotted names."""
    said: set[str] = set()
    for word in sorted(words, key=lambda word: not word.key.endswith(TARGET)):  # targets first: they set the kinds of the other keys
        value = kinds.value(word.key, word.value, _plain(config))
        free = isinstance(value, dict) and kinds.of(word.key).values is not None
        OmegaConf.update(config, word.key, value, merge=not free, force_add=True)
        said |= set(flatten({word.key: value}))
    return said


def _settle(config: DictConfig, kinds: Kinds) -> None:
    """Convert integers that were given as floats, and expand `~` in paths, from whatever source they came."""
    tree = _plain(config)
    for key, value in flatten(tree).items():
        kind = kinds.of(key, tree)
        if not isinstance(value, dict) and (new := settled(value, kind)) is not value and repr(new) != repr(value):
            OmegaConf.update(config, key, new)


def require_all(composed: Composed, verb: str, bare: Sequence[str] = ()) -> None:
    """Raise ValueError with all keys that the command line must still give: those with `???` in the YAML, and those of a training that
    resumes no run. bare: keys whose values are plain words. It is called before heavy imports, and before a job is submitted."""
    flat = flatten(composed.config)
    missing = [key for key, value in flat.items() if value == "???"]
    if missing:
        words = " ".join("FOLDER …" if key in bare else f"{key}=…" for key in missing)
        raise ValueError(f"needs {words}{f': sora {verb} {words}' if set(missing) & set(bare) else ''}; see sora {verb} --help")
    if "data.folders" in flat and flat.get("resume") in (None, "auto"):
        require_given(composed.config, verb)


def named_file(argument: str, verb: str) -> str:
    """Replace `captions=FILE` by `captions.file=FILE` for keys with a mapping whose first key is `file`; return other words unchanged."""
    key, _, value = argument.partition("=")
    held = [OmegaConf.select(read(path), key) for path in primaries(verb)] if key.isidentifier() else []
    files = any(isinstance(node, DictConfig) and next(iter(node), None) == "file" for node in held)
    return f"{key}.file={value}" if files and not value.startswith("{") else argument


class Loader:
    """Composes a verb's configuration with Hydra, and translates Hydra's errors."""

    def __init__(self, verb: str, extra: Sequence[Path]) -> None:
        self.verb, self.extra = verb, extra

    def load(self, overrides: Sequence[str], *, check_hydra: bool = False) -> Composed:
        """The composition of these overrides: by Hydra the first time (0.3 s), then a copy of it while no file changes."""
        made, refused = _loaded(self.verb, tuple(self.extra), tuple(overrides), _stamps([config_dir(), *self.extra]))
        if check_hydra and refused:
            raise ValueError(refused)
        return Composed(deepcopy(made.config), dict(made.choices))

    def by_hydra(self, overrides: Sequence[str]) -> tuple[Composed, str]:
        """The composition, and the error for a file that asks Hydra for something that is refused, or ""."""
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        outer = GlobalHydra.instance().hydra  # a job of a Hydra launcher composes within Hydra's own run
        GlobalHydra.instance().hydra = None
        search = ",".join(for_hydra(f"file://{folder}") for folder in self.extra)
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3", job_name=self.verb):
                paths = [f"hydra.searchpath=[{search}]"] if search else []
                config = hydra_compose(self.verb, overrides=[*paths, *overrides], return_hydra_config=True)
                refused = _asked_of_hydra(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(self._told(error)) from error
        except RecursionError:
            raise ValueError("the defaults of a YAML file lead back to it, without an end") from None
        except OSError as error:  # a folder's YAML file cannot be read
            raise ValueError(f"the configuration cannot be read: {error}") from error
        except Exception as error:
            if type(error).__module__.startswith("yaml"):
                raise ValueError(f"a YAML file of the configuration is damaged: {' '.join(str(error).split())}") from error
            raise
        finally:
            GlobalHydra.instance().hydra = outer
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        kept = {str(group): option for group, option in choices.items() if not str(group).startswith("hydra/")}
        ours = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key != "hydra"})
        OmegaConf.set_struct(ours, True)
        return Composed(ours, {group: None if option in (None, "null") else str(option) for group, option in kept.items()}), refused

    @cached_property
    def own_groups(self) -> set[str]:
        """The groups in the verb's own defaults list; a task's groups follow these."""
        found = [item for path in primaries(self.verb) for item in defaults_of(path) if isinstance(item, DictConfig)]
        return {str(key).removeprefix("override ").lstrip("/") for item in found for key in item}

    @cached_property
    def optional_groups(self) -> set[str]:
        """The groups among these that have no option by default."""
        found = [item for path in primaries(self.verb) for item in defaults_of(path) if isinstance(item, DictConfig)]
        return {str(key).removeprefix("override ").lstrip("/") for item in found for key, value in item.items() if value is None}

    def _told(self, error: Exception) -> str:
        """Hydra's message with its cause, but without its advice to add keys with `+`, which does not work here."""
        cause = error.__cause__ or error
        lines = [line for line in str(error or cause).splitlines() if line.strip() and "To append to your" not in line]
        text = " ".join(line.strip() for line in lines) or str(cause)
        return text if str(cause).splitlines()[0] in text else f"{text} ({str(cause).splitlines()[0]})"


@lru_cache(maxsize=64)
def _loaded(verb: str, extra: tuple[Path, ...], overrides: tuple[str, ...], stamps: tuple[Any, ...]) -> tuple[Composed, str]:
    del stamps  # part of the cache's key: a changed file must be read again
    return Loader(verb, extra).by_hydra(overrides)


def _stamps(folders: Sequence[Path]) -> tuple[Any, ...]:
    """A stamp of every file that differs once the file has changed. A broken link has none; Hydra reports it."""
    found = [path for folder in folders for path in folder.rglob("*.yaml") if path.exists()]
    return tuple((str(path), status.st_mtime_ns, status.st_size) for path in sorted(found) for status in [path.stat()])


def _asked_of_hydra(config: DictConfig) -> str:
    """The error if a file sets Hydra's own settings, or "": callbacks, launchers and logging there name objects that Hydra would call."""
    ours: Any = OmegaConf.to_container(config.hydra, resolve=False)
    theirs = _hydra_untouched()
    for key in sorted(ours.keys() - {"overrides", "runtime", "job", "searchpath"}):
        if ours[key] != theirs.get(key):
            return f"a YAML file sets hydra.{key}, which is refused: an option file holds only settings of sora's own"
    return ""


@cache
def _hydra_untouched() -> dict[str, Any]:
    """Hydra's own settings as it ships them. Call it while Hydra is initialised."""
    from hydra import compose as hydra_compose

    settings: Any = OmegaConf.to_container(hydra_compose(None, return_hydra_config=True).hydra, resolve=False)
    return settings


def _sorted(words: list[Word], loader: Loader, available: dict[str, dict[str, Path]]) -> tuple[list[Word], list[Word]]:
    """Split words into those of groups in force and those of keys; a name of a group that is not in force here is a key.

    `sora encode vae=FOLDER` sets a key, though `vae` is a group of `sora train task=vae`; Hydra would take it for the group.
    """
    for word in words:
        if word.key.split(".")[0] == "hydra" or word.key.startswith("hydra/"):
            raise ValueError(f"{word}: Hydra's own settings are not settable here, except hydra/launcher= with -m")
    own = loader.own_groups
    grouped = [word for word in words if word.key in own]
    for word in grouped:
        _check_option(word, available)
        if word.value == "null" and word.key not in loader.optional_groups:
            raise ValueError(f"{word}: there has to be one; its options: {listed(available[word.key])}")
    # Hydra cannot be told to choose no option. If that is the default, it does so without an override
    nothing = [word for word in grouped if word.value == "null"]
    grouped = [word for word in grouped if word not in nothing]
    doubtful = [word for word in words if word.key in available and word.key not in own]
    if _all_in_force([*grouped, *doubtful], loader, available):
        return [*grouped, *doubtful], [word for word in words if word not in grouped and word not in nothing and word not in doubtful]
    base = loader.load([word.option for word in grouped])
    for word in doubtful:
        if word.key in base.choices:
            _check_option(word, available)
            grouped.append(word)
        elif word.key not in base.config.keys():  # noqa: SIM118  `in` says no to a key that must still be given
            raise ValueError(f"{word.key}= does not fit here: the groups in force are {listed(base.choices)}")
    return grouped, [word for word in words if word not in grouped and word not in nothing]


def _all_in_force(words: Sequence[Word], loader: Loader, available: dict[str, dict[str, Path]]) -> bool:
    """Whether all these words choose options of groups in force. Hydra's composition is cached for the caller."""
    if not all(word.value in available.get(word.key, {}) for word in words):
        return False
    try:
        loader.load([word.option for word in words])
    except ValueError:  # reported later, when the groups in force are known
        return False
    return True


def _check_option(word: Word, available: dict[str, dict[str, Path]]) -> None:
    options = available.get(word.key, {})
    if word.value in options or word.value == "null":
        return
    unreadable(word.value)
    if len(cut(word.value)) > 1:
        raise ValueError(f"{word} names several options; add -m (--multirun) to run them one after another")
    raise ValueError(f"there is no {word}{meant(word.value, options)}; its options: {listed(options)}")


def _check_key(key: str, known: dict[str, Any], choices: dict[str, str | None], kinds: Kinds, verb: str) -> None:
    """Raise ValueError unless the composition has the key, or it lies under a mapping that takes any key."""
    names = [*known, *choices]
    parts = key.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts))}
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    if any(known.get(name) == {} or (name in known and kinds.of(name).values) for name in above):
        return
    inside = [name for name in known if name.startswith(f"{parts[0]}.")] if len(parts) > 1 else []
    top = {name for name in names if "." not in name}  # a group without an option is a key, too
    raise ValueError(
        f"there is no key {key!r}{meant(key, names)}; {f'{parts[0]} has' if inside else f'sora {verb} has'}: "
        f"{listed(inside or top)}. See sora {verb} --help"
    )
