"""Composing a command's configuration from `conf/`, with every key checked and every mistake answered by what exists.

Hydra merges; what it lets through is refused here. The keys that exist are those of the composition *without* the experiment and
without the command line's values: anything else that they bring is a mistake, `+key=` or not. An experiment's values belong to the
options that it was written for: where the command line names an option itself, that option's own file holds, except for what both
options make of one class and set alike (`plan=bucketed` keeps an experiment's budget, `dit=xl_2` does not keep its depth).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.configs.build import refuse_resolvers
from sora.configs.check import check_targets, check_values, flatten, leave_behind
from sora.configs.words import listed, meant

# Groups whose options choose options of other groups and set their values: of a training, of a published evaluation.
CHOOSERS = ("experiment", "preset")


@dataclass(frozen=True)
class Composed:
    """A command's configuration, and which option of which group went into it (None: no option).

    said: the keys and groups that the command line itself named, whatever values they have.
    """

    config: DictConfig
    choices: dict[str, str | None]
    keys: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def config_dir() -> Path:
    """The folder of the configuration files: inside the package in a wheel, beside it in a checkout.

    It is found from this file and never through importlib: an editable install leaves a copy in site-packages that grows stale.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ValueError(f"no configuration files in or beside {package}: the installation is broken; install sora again")


def groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Each group's options and their files; earlier folders win."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, {}).setdefault(path.stem, path)
    return found


def primaries(verb: str) -> list[Path]:
    """The verb's own file, and those of the verbs that it stands on (`defaults: [train]`), which come first."""
    path = config_dir() / f"{verb}.yaml"
    above = [item for item in _defaults(path) if isinstance(item, str) and item != "_self_"]
    return [*(found for name in above for found in primaries(name)), path]


def _defaults(path: Path) -> list[Any]:
    primary = OmegaConf.load(path)
    return list(primary.get("defaults", [])) if isinstance(primary, DictConfig) else []


def compose(verb: str, arguments: Sequence[str], folders: Iterable[Path] = ()) -> Composed:
    """The checked configuration of `sora VERB ARGUMENTS…`; `folders` add options to those of `conf/`.

    Raises ValueError for whatever a user can get wrong, naming the key or option, and what fits.
    """
    extra = [Path(folder).resolve() for folder in folders]
    for folder in extra:
        if not folder.is_dir():
            raise ValueError(f"--config-dir {folder} is not a folder")
    available = groups([config_dir(), *extra])
    loader = Loader(verb, extra)
    words = [word for argument in arguments for word in counted(named_file(argument, verb), available)]
    grouped, valued, direct = _sorted([parse(word) for word in words], loader, available)
    chosen = [override.input_line for override in grouped]
    with_experiment = loader.load(chosen, check_hydra=True)
    reference = loader.without_experiment(with_experiment)
    check_targets(reference.config, "")
    named = _named_over_experiment(grouped, with_experiment, reference)
    shared = _shared(named, grouped, loader, reference, available)
    _take_own_values(with_experiment, reference, named, but=shared)
    source = ", ".join(f"conf/{group}/{option}.yaml" for group, option in _chosen(with_experiment.choices).items())
    check_values(with_experiment.config, reference.config, said_by=source)
    known = flatten(with_experiment.config)
    for override in [*valued, *direct]:
        _check_key(override.key_or_group, known, with_experiment.choices, verb)
    # a key under a mapping that takes any is new to Hydra, so it is added
    lines = [("" if known.get(item.key_or_group, {}) != {} else "++") + item.input_line.lstrip("+") for item in valued]
    whole = loader.load([*chosen, *lines]) if lines else with_experiment
    _take_own_values(whole, reference, named, but=[*shared, *(item.key_or_group for item in valued)])
    for override in direct:
        OmegaConf.update(whole.config, override.key_or_group, override.value())
    refuse_resolvers(OmegaConf.to_container(whole.config, resolve=False))
    leave_behind(whole.config, with_experiment.config, {key for item in valued for key in flatten({item.key_or_group: item.value()})})
    check_values(whole.config, reference.config, said_by="the command line")
    check_targets(whole.config, "")
    return Composed(whole.config, whole.choices, known, tuple(item.key_or_group for item in (*grouped, *valued, *direct)))


def _chosen(choices: dict[str, str | None]) -> dict[str, str]:
    """The options of CHOOSERS that are in force."""
    return {group: option for group in CHOOSERS if (option := choices.get(group)) is not None}


def _named_over_experiment(grouped: Sequence[Any], with_experiment: Composed, reference: Composed) -> list[str]:
    """The groups of which the command line names the option, though an experiment may set values of it."""
    if not _chosen(with_experiment.choices):
        return []
    return [item.key_or_group for item in grouped if item.key_or_group in reference.config]


def _shared(
    named: Sequence[str], grouped: Sequence[Any], loader: Loader, reference: Composed, available: dict[str, dict[str, Path]]
) -> list[str]:
    """The keys that the options `named` set like those which the experiment chose itself, where both make one class."""
    if not named:
        return []
    as_written = loader.load([item.input_line for item in grouped if item.key_or_group not in named])
    found = []
    for name in named:
        option = as_written.choices.get(name)
        theirs: Any = {} if option is None else OmegaConf.load(available[name][option])
        if "defaults" in theirs:  # an option that is made of others
            theirs = loader.without_experiment(as_written).config[name]
        if theirs.get("_target_") == reference.config[name].get("_target_") is not None:
            mine, other = flatten(reference.config[name]), flatten(theirs)
            found += [f"{name}.{key}" for key, value in mine.items() if key in other and other[key] == value]
    return found


def _take_own_values(composed: Composed, reference: Composed, named: Sequence[str], but: Sequence[str] = ()) -> None:
    """Give the groups `named` the values of their option's own file, apart from the keys `but`."""
    for name in named:
        said = {key: OmegaConf.select(composed.config, key) for key in but if key.startswith(f"{name}.")}
        OmegaConf.update(composed.config, name, OmegaConf.to_container(reference.config[name]), merge=False)
        for key, value in said.items():
            OmegaConf.update(composed.config, key, value, force_add=True)


def require_all(composed: Composed, verb: str) -> None:
    """Raise ValueError that lists the keys which the command line still has to give (`???` in the YAML)."""
    missing = [key for key, value in flatten(composed.config).items() if value == "???"]
    if missing:
        raise ValueError(f"needs {' '.join(f'{key}=…' for key in missing)}; see sora {verb} --help")


def named_file(argument: str, verb: str) -> str:
    """`captions=FILE` as `captions.file=FILE`, for keys that hold a mapping with a `file` first; others as they stand."""
    key, _, value = argument.partition("=")
    held = [OmegaConf.select(OmegaConf.load(path), key) for path in primaries(verb)] if key.isidentifier() else []
    files = any(isinstance(node, DictConfig) and next(iter(node), None) == "file" for node in held)
    return f"{key}.file={value}" if files and not value.startswith("{") else argument


def counted(argument: str, available: dict[str, dict[str, Path]]) -> list[str]:
    """`cluster=h100x512` as `cluster=h100 cluster.devices=512`, for options that say how many devices they are; others as they stand."""
    group, _, option = argument.partition("=")
    name, _, count = option.rpartition("x")
    options = available.get(group, {})
    if option in options or name not in options or not count.isdecimal():
        return [argument]
    node = OmegaConf.load(options[name])
    return [f"{group}={name}", f"{group}.devices={count}"] if isinstance(node, DictConfig) and "devices" in node else [argument]


def parse(argument: str) -> Any:
    """One `key=value` as Hydra reads it; a value that holds a sentence or a path need not be quoted a second time."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = argument.partition("=")
    if not equals and not key.startswith("~"):
        raise ValueError(f"{argument!r} is not an option: write KEY=VALUE or GROUP=OPTION")
    if " " in value and value[0] not in "'\"[{" and not value.startswith(("choice(", "range(", "glob(")):
        argument = f"{key}={quoted(value)}"
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        try:
            return OverridesParser.create().parse_override(f"{key}={quoted(value)}")
        except HydraException as error:
            raise ValueError(f"{argument!r} cannot be read as KEY=VALUE: {str(error).splitlines()[0]}") from None


def quoted(value: str) -> str:
    """A value in quotes of Hydra's grammar, which takes backslashes literally except before a quote."""
    body = value.replace("'", "\\'")
    return f"'{body}\\'" if body.endswith("\\") else f"'{body}'"


class Loader:
    """Hydra's composition of one verb, with its errors told in our words."""

    def __init__(self, verb: str, extra: Sequence[Path]):
        self.verb, self.extra = verb, extra

    def load(self, overrides: Sequence[str], *, check_hydra: bool = False) -> Composed:
        """The composition of these words: Hydra's the first time (0.3 s), a copy of it as long as no file changes."""
        made = _loaded(self.verb, tuple(self.extra), tuple(overrides), check_hydra, _stamps([config_dir(), *self.extra]))
        return Composed(deepcopy(made.config), dict(made.choices))

    def by_hydra(self, overrides: Sequence[str], *, check_hydra: bool) -> Composed:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        outer = GlobalHydra.instance().hydra  # a job of a Hydra launcher composes within Hydra's own run
        GlobalHydra.instance().hydra = None
        search = ",".join(quoted(f"file://{folder}") for folder in self.extra)
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3", job_name=self.verb):
                paths = [f"hydra.searchpath=[{search}]"] if search else []
                config = hydra_compose(self.verb, overrides=[*paths, *overrides], return_hydra_config=True)
                if check_hydra:
                    _refuse_hydra(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(self._told(error)) from error
        except OSError as error:  # yaml of a folder that cannot be read
            raise ValueError(f"the configuration cannot be read: {error}") from error
        except Exception as error:
            if type(error).__module__.startswith("yaml"):
                raise ValueError(f"a YAML file of the configuration is damaged: {error}") from error
            raise
        finally:
            GlobalHydra.instance().hydra = outer
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        kept = {str(group): option for group, option in choices.items() if not str(group).startswith("hydra/")}
        ours = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key != "hydra"})
        OmegaConf.set_struct(ours, True)
        return Composed(ours, {group: None if option in (None, "null") else str(option) for group, option in kept.items()})

    def without_experiment(self, composed: Composed) -> Composed:
        """The same choices of every group, without what the experiment's file itself sets."""
        if not _chosen(composed.choices):
            return composed
        named = {group: option for group, option in composed.choices.items() if option is not None or group not in self.optional_groups}
        own = [f"{group}={option or 'null'}" for group, option in named.items() if group in self.own_groups]
        bare = self.load([item for item in own if item.partition("=")[0] not in CHOOSERS])
        choices = {group: option or "null" for group, option in named.items() if group not in CHOOSERS}
        return self.load([f"{'' if group in bare.choices else '+'}{group}={option}" for group, option in choices.items()])

    @cached_property
    def own_groups(self) -> set[str]:
        """The groups that the verb's own defaults list names (a task's groups come after these)."""
        found = [item for path in primaries(self.verb) for item in _defaults(path) if isinstance(item, DictConfig)]
        return {str(key).removeprefix("override ").lstrip("/") for item in found for key in item}

    @cached_property
    def optional_groups(self) -> set[str]:
        """Those of them that have no option unless one is named."""
        found = [item for path in primaries(self.verb) for item in _defaults(path) if isinstance(item, DictConfig)]
        return {str(key).removeprefix("override ").lstrip("/") for item in found for key, value in item.items() if value is None}

    def _told(self, error: Exception) -> str:
        """Hydra's message without its advice to add keys with `+`, which does not work here, and with its cause."""
        cause = error.__cause__ or error
        lines = [line for line in str(error or cause).splitlines() if line.strip() and "To append to your" not in line]
        text = " ".join(line.strip() for line in lines) or str(cause)
        return text if str(cause).splitlines()[0] in text else f"{text} ({str(cause).splitlines()[0]})"


@lru_cache(maxsize=64)
def _loaded(verb: str, extra: tuple[Path, ...], overrides: tuple[str, ...], check_hydra: bool, stamps: tuple[Any, ...]) -> Composed:
    del stamps  # files that have changed are other files
    return Loader(verb, extra).by_hydra(overrides, check_hydra=check_hydra)


def _stamps(folders: Sequence[Path]) -> tuple[Any, ...]:
    """What tells whether a file has changed. A link to nowhere has none, and is Hydra's to complain of."""
    found = [path for folder in folders for path in folder.rglob("*.yaml") if path.exists()]
    return tuple((str(path), status.st_mtime_ns, status.st_size) for path in sorted(found) for status in [path.stat()])


def _refuse_hydra(config: DictConfig) -> None:
    """No file may reach into Hydra's own settings: callbacks, launchers and logging there name things that Hydra would call."""
    ours: Any = OmegaConf.to_container(config.hydra, resolve=False)
    theirs = _hydra_untouched()
    for key in sorted(ours.keys() - {"overrides", "runtime", "job", "searchpath"}):
        if ours[key] != theirs.get(key):
            raise ValueError(f"a YAML file sets hydra.{key}, which is refused: an option file holds only settings of sora's own")


@cache
def _hydra_untouched() -> dict[str, Any]:
    """Hydra's own settings as it ships them. Called while Hydra is initialised."""
    from hydra import compose as hydra_compose

    settings: Any = OmegaConf.to_container(hydra_compose(None, return_hydra_config=True).hydra, resolve=False)
    return settings


def _sorted(overrides: list[Any], loader: Loader, available: dict[str, dict[str, Path]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Overrides of groups in force, of keys, and of keys that share their name with a group which is not in force here.

    `sora encode vae=FOLDER` sets a key, though `vae` is a group of `sora train task=vae`; Hydra would take it for the group.
    """
    for override in overrides:
        key, line = override.key_or_group, override.input_line
        if override.is_delete():
            raise ValueError(f"{line}: a key cannot be taken away; set it to null, or choose another option of its group")
        if key.split(".")[0] == "hydra" or key.startswith("hydra/"):
            raise ValueError(f"{line}: Hydra's own settings are not settable here, except hydra/launcher= with -m")
    own = loader.own_groups
    grouped = [item for item in overrides if item.key_or_group in own]
    for override in grouped:
        _check_option(override, available)
        if override.value() in (None, "null") and override.key_or_group not in loader.optional_groups:
            raise ValueError(f"{override.input_line}: there has to be one; its options: {listed(available[override.key_or_group])}")
    # Hydra cannot be told to choose nothing; where nothing is the default, that is what it does when it is told nothing
    overrides = [item for item in overrides if not (item in grouped and item.value() in (None, "null"))]
    grouped = [item for item in grouped if item in overrides]
    doubtful = [item for item in overrides if item.key_or_group in available and item.key_or_group not in own]
    if not doubtful:
        return grouped, [item for item in overrides if item not in grouped], []
    base = loader.load([item.input_line for item in grouped])
    direct = []
    for override in doubtful:
        key = override.key_or_group
        if key in base.choices:
            _check_option(override, available)
            grouped.append(override)
        elif key in base.config.keys():  # noqa: SIM118  `in` says no to a key that must still be given
            if override.is_sweep_override():
                raise ValueError(f"{override.input_line} names several values; add -m to run them one after another, or quote it")
            direct.append(override)
        else:
            raise ValueError(f"{key}= does not fit here: the groups in force are {listed(base.choices)}")
    return grouped, [item for item in overrides if item not in grouped and item not in direct], direct


def _check_option(override: Any, available: dict[str, dict[str, Path]]) -> None:
    key, line, options = override.key_or_group, override.input_line, available.get(override.key_or_group, {})
    if override.is_sweep_override():
        raise ValueError(f"{line} names several options; add -m to run them one after another")
    option = override.value()
    if not isinstance(option, str | int | float | None):
        raise ValueError(f"{line}: {key} is a group; its options: {listed(options)}")
    if option not in (None, "null") and str(option) not in options:
        raise ValueError(f"there is no {key}={option}{meant(str(option), options)}; its options: {listed(options)}")


def _check_key(key: str, known: dict[str, Any], choices: dict[str, str | None], verb: str) -> None:
    """A key of the command line must be one that the composition has (or lie under a mapping that takes any)."""
    names = [*known, *choices]
    parts = key.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts))}
    if key in known or any(name.startswith(f"{key}.") for name in known) or any(known.get(name) == {} for name in above):
        return
    inside = [name for name in known if name.startswith(f"{parts[0]}.")] if len(parts) > 1 else []
    top = {name for name in names if "." not in name}  # a group that is left out by itself is a key, too
    raise ValueError(
        f"there is no key {key!r}{meant(key, names)}; {f'{parts[0]} has' if inside else f'sora {verb} has'}: "
        f"{listed(inside or top)}. See sora {verb} --help"
    )
