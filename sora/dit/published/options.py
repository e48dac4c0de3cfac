"""Maps between the config.json of a published network and the keys of our `dit`, used in both directions.

Our side are the values by the dotted keys of `dit`, such as rope.theta, called leaves here; and latent_channels and out_channels, which the
VAE determines, and text_width, which the text encoder determines. A published configuration corresponds to exactly one set of leaves.
Every value is compared on import and on export, and every key of a config.json is mapped, fixed, without effect, or unknown (an error).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any

CLASS = "_class_name"
NOTES = (CLASS, "_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values")  # metadata that diffusers writes
GIVEN = {"latent_channels": "vae", "out_channels": "vae", "text_width": "text"}  # leaves that are no keys of dit: the key that sets them

# Keys that older versions of diffusers wrote for their transformers, and the only values that our networks support.
OLDER = {
    "attention_type": "default",
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}

# Class names in the config.json files of original repositories, which are no classes of diffusers.
MAKERS = {"WanModel": "Wan's own repository", "CausalWanModel": "a descendant of Wan's own repository"}


def anew(kind: str, *, parts: bool) -> str:
    """Advice how to convert original files with a class of diffusers. parts: whether the weights are several files."""
    what = "TENSORS, of all parts in one dict" if parts else "FILE"
    return f"let diffusers write them anew: {kind}.from_single_file({what}).save_pretrained(FOLDER)"


@dataclass(frozen=True)
class From:
    """A value computed by `make` from the values of one or more keys of the other side. keys: names separated by spaces."""

    keys: str
    make: Callable[..., Any] = lambda value: value


class Told:
    """Placeholder that equals any value but None, for the guidance scale, an input of the published network and not in its config.json."""

    def __eq__(self, other: object) -> bool:
        return other is not None

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "the scale that it imitates"


@dataclass(frozen=True)
class Options:
    """Map of the configuration of a class in diffusers.

    names: names of the class; all are read, the first is written. defaults: default of every key, for keys missing in a config.json.
    only: keys, some of older versions, for which our network supports a single value. unread: keys that do not affect the prediction.
    shapeless: keys that cannot be inferred from tensor shapes. ours: value of each of our leaves, a constant or `From` keys of the class.
    theirs: value of each key of the class, the name of one of our leaves or `From` several.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    only: Mapping[str, Any]
    unread: Collection[str]
    shapeless: Collection[str]
    ours: Mapping[str, Any]
    theirs: Mapping[str, str | From]


class Leaves(dict[str, Any]):
    """Values of a configuration node by dotted keys; None for missing keys, as in YAML."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass(frozen=True)
class OptionDifference:
    """A leaf that differs in the published network. said: published keys that set its value there; empty for a constant of the class."""

    key: str
    here: Any
    there: Any
    said: tuple[str, ...]


def plain(value: Any) -> Any:
    """Convert tuples to lists, recursively, as in YAML."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---- import


def refuse_other(options: Options, found: Any, ours: Leaves, *, place: str, allowed: Sequence[str] = (), parts: bool = False) -> None:
    """Raise ValueError that names all differences, unless the config.json `found` describes our network in every leaf.

    place: path or other name of the config.json, for messages. allowed: leaves, or prefixes of leaves, that may differ; each of them must
    differ. parts: whether the weights are several files.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{place} is damaged: it holds no mapping")
    refuse_unknown(options, found, place=place, parts=parts)
    config = {**options.defaults, **found}
    wrong = differences(options, config, ours, place=place)
    for name in allowed:
        if not any(_within(item.key, name) for item in wrong):
            raise ValueError(f"init_allow names dit.{name}, in which this dit and {place} do not differ; leave it out")
    if wrong := [item for item in wrong if not any(_within(item.key, name) for name in allowed)]:
        words = " ".join(f"dit.{item.key}={_word(item.there)}" for item in wrong if _settable(item))
        advice = f"set {words}" if words else "choose what it was made with"
        raise ValueError(f"{place} is of another network: {_there(options, config, wrong)}; {advice}")


def refuse_unknown(options: Options, found: Mapping[str, Any], *, place: str, parts: bool = False) -> None:
    """Raise ValueError unless a config.json is of this class and all its keys and values are known and supported."""
    kind = options.names[0]
    if found.get(CLASS) not in options.names:
        named = f"{CLASS}={found[CLASS]}" if CLASS in found else f"no {CLASS}"
        whose = MAKERS.get(str(found.get(CLASS)), "")
        told = f": that is {whose}; {anew(kind, parts=parts)}" if whose else ""
        raise ValueError(f"{place} says {named}, this dit is {CLASS}={kind}{told or '; choose the dit that the checkpoint was made of'}")
    if quantised := [key for key in found if "quant" in key]:
        raise ValueError(f"{place} has {quantised[0]}: its weights are quantised; init= takes weights of 16 or 32 bits")
    known = {*options.defaults, *options.only, *options.unread, *NOTES}
    if unknown := sorted(str(key) for key in found if key not in known):
        raise ValueError(
            f"{place} says {', '.join(f'{key}={found[key]}' for key in unknown)}, and what that changes of {kind} is not known here;"
            " the checkpoint cannot be taken over"
        )
    config = {**options.defaults, **found}
    mapped = {key for value in options.ours.values() if isinstance(value, From) for key in value.keys.split()}
    if wrong := [f"{key}={config[key]!r}" for key in sorted(mapped) if not _of_kind(config[key], options.defaults[key])]:
        raise ValueError(f"{place} is damaged: {', '.join(wrong)} is nothing that {kind} takes there")
    if other := [f"{key}={config[key]} (here {value})" for key, value in options.only.items() if config.get(key, value) != value]:
        raise ValueError(f"{place} says {', '.join(other)}, as no dit here is; the checkpoint cannot be taken over")


def _of_kind(value: Any, like: Any) -> bool:
    """Whether a value is of the kind of the default `like`: bool, list of as many numbers, or number (None only if `like` is None)."""
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, list):
        return isinstance(value, list | tuple) and len(value) == len(like) and all(_of_kind(item, 1) for item in value)
    return (value is None and like is None) or (isinstance(value, int | float) and not isinstance(value, bool))


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def differences(options: Options, config: Mapping[str, Any], ours: Leaves, *, place: str) -> list[OptionDifference]:
    """Leaves in which our network differs from that of a published configuration.

    Raises:
        ValueError: a leaf cannot be computed from a published value; the message names its key.
    """
    expected: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for key, value in options.ours.items():
        expected[key] = (_made(value, config, place), tuple(value.keys.split())) if isinstance(value, From) else (value, ())
    found = []
    for key in sorted({*expected, *ours} - {"words", "hidden"}):
        there, said = expected.get(key, (None, ()))
        if there != ours[key]:
            found.append(OptionDifference(key, ours[key], there, said))
    return _outermost(found)


def _outermost(found: list[OptionDifference]) -> list[OptionDifference]:
    """Drop differences inside parts whose `_target_` differs already."""
    parts = [item.key.removesuffix("_target_") for item in found if item.key.endswith("._target_")]
    return [item for item in found if item.key.endswith("._target_") or not item.key.startswith(tuple(parts))]


def _made(value: From, config: Mapping[str, Any], place: str) -> Any:
    keys = value.keys.split()
    try:
        return plain(value.make(*(config[key] for key in keys)))
    except (TypeError, ValueError, ArithmeticError):
        told = ", ".join(f"{key}={config[key]!r}" for key in keys)
        raise ValueError(f"{place} says {told}, of which no network can be made") from None


def _settable(item: OptionDifference) -> bool:
    return item.key not in GIVEN and not item.key.endswith("._target_") and item.there is not None and not isinstance(item.there, Told)


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _there(options: Options, config: Mapping[str, Any], wrong: list[OptionDifference]) -> str:
    """Text that names each published value once, with all leaves that differ because of it."""
    grouped: dict[tuple[str, ...], list[OptionDifference]] = {}
    for item in wrong:
        grouped.setdefault(item.said, []).append(item)
    return "; ".join(
        f"{', '.join(f'{key}={config[key]}' for key in said) or options.names[0]} means {', '.join(_meant(item) for item in items)}"
        for said, items in grouped.items()
    )


def _meant(item: OptionDifference) -> str:
    if item.key in GIVEN:
        return f"{item.key.replace('_', ' ')} {item.there:g}, and {GIVEN[item.key]}= here gives {item.here}"
    key = item.key.removesuffix("._target_")
    return f"dit.{key}={_word(_null(item.there))} and not {_word(_null(item.here))}"


def _null(value: Any) -> Any:
    return "null" if value is None else value


# ---- export


def said(options: Options, ours: Leaves, *, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Published configuration that is nearest to our network, and equal to it if the class has keys for all our leaves.

    beside: another configuration, from which keys without effect are copied.
    """
    unread = {key: value for key, value in (beside or {}).items() if key in options.unread and key in options.defaults}
    made = {key: _back(of, ours) for key, of in options.theirs.items()}
    known = {key: value for key, value in made.items() if value is not None}
    fixed = {key: value for key, value in options.only.items() if key in options.defaults}
    return {CLASS: options.names[0], **options.defaults, **fixed, **known, **unread}


def written(options: Options, ours: Leaves, *, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Configuration of `said`, after a check that it describes the same network as ours.

    Raises:
        ValueError: the class has no keys to describe our network; the message names the leaves.
    """
    config = said(options, ours, beside=beside)
    if wrong := differences(options, config, ours, place="this network's configuration"):
        raise ValueError(
            f"{options.names[0]} has no key to say {', '.join(_here(item, options) for item in wrong)}; nothing was written. format=run"
            " writes the network as a run of ours, which says all of it"
        )
    return config


def _back(of: str | From, ours: Leaves) -> Any:
    """Published value of a key; None if it cannot be computed, because then `differences` gives a better message."""
    if isinstance(of, str):
        return ours[of]
    try:
        return of.make(*(ours[key] for key in of.keys.split()))
    except (TypeError, ArithmeticError):
        return None


def _here(item: OptionDifference, options: Options) -> str:
    """Text for a leaf that cannot be exported: its value, the value that the class has instead, and other leaves that share its keys."""
    of = [options.theirs.get(key) for key in item.said]
    ours = [key for each in of if each is not None for key in ([each] if isinstance(each, str) else each.keys.split())]
    others = ", ".join(f"dit.{key.removesuffix('._target_')}" for key in ours if key not in GIVEN and key != item.key)
    where = f" by {', '.join(item.said)}" + (f", which {others} gives" if others else "") if item.said else ""
    key = item.key.removesuffix("._target_")
    return f"{'' if item.key in GIVEN else 'dit.'}{key}={_word(_null(item.here))} (it has {_word(_null(item.there))}{where})"


def as_int(ratio: float, width: int) -> float:
    """`ratio`, or the next float above it if int(ratio * width), as diffusers computes it, would be too small by rounding."""
    return ratio if int(ratio * width) == round(ratio * width) else nextafter(ratio, inf)


def with_variances(channels: int, out: int | None) -> int | None:
    """Number of predicted channels without variances, for a network that may also predict one variance per channel."""
    return channels if out in (None, channels, 2 * channels) else out


def across(heads: int, head: int, cross: int | None) -> int:
    """Width of a network, which its cross-attention must have too. Raises ValueError if the two differ."""
    if cross != heads * head:
        raise ValueError(f"{cross} is not {heads} times {head}")
    return heads * head
