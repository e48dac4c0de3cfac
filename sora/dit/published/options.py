"""What the config.json of a published network says, in the keys of our `dit`: data, read in both directions.

Ours are the values that a network was put together of, by the dotted keys of `dit`, such as rope.theta, and beside them latent_channels and
out_channels (the VAE's, both) and text_width (the text encoder's). A published configuration stands for exactly one set of them. So nothing
that shapes a network escapes: every value is compared, on the way in and on the way out, and every key of a config.json is mapped, fixed,
without effect, or unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any

CLASS = "_class_name"
NOTES = (CLASS, "_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values")  # that diffusers writes about itself
GIVEN = {"latent_channels": "vae", "out_channels": "vae", "text_width": "text"}  # where what is no key of the dit comes from

# What older versions of diffusers wrote of their transformers, and which of it our networks are.
OLDER = {
    "attention_type": "default",
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}

# What is no class of diffusers and stands in the config.json of its makers.
MAKERS = {"WanModel": "Wan's own repository", "CausalWanModel": "a descendant of Wan's own repository"}


def anew(kind: str, *, parts: bool) -> str:
    """How a class of diffusers writes its makers' own files by the names of diffusers. parts: the weights are several files."""
    what = "TENSORS, of all parts in one dict" if parts else "FILE"
    return f"let diffusers write them anew: {kind}.from_single_file({what}).save_pretrained(FOLDER)"


@dataclass(frozen=True)
class From:
    """A value of one side as one of the other, or worked out of several of it, which stand in `keys`, apart by blanks."""

    keys: str
    make: Callable[..., Any] = lambda value: value


class Told:
    """Any value but None: a scale that the published network is told when it is called."""

    def __eq__(self, other: object) -> bool:
        return other is not None

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "the scale that it imitates"


@dataclass(frozen=True)
class Options:
    """The configuration of a class in diffusers.

    names: of the class; the first is written, and the others are read. defaults: of every key that it has, for a config.json that leaves
    some out. only: keys, some of older versions, of which our network is one value. unread: keys on which no prediction depends.
    shapeless: keys that no tensor's shape tells. ours: each of our leaves, as a constant of the class or `From` its keys. theirs: the keys
    back from ours, as the name of one or `From` some.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    only: Mapping[str, Any]
    unread: Collection[str]
    shapeless: Collection[str]
    ours: Mapping[str, Any]
    theirs: Mapping[str, str | From]


class Leaves(dict[str, Any]):
    """A node's leaves by dotted keys; None for those that it lacks, which is what they are in YAML too."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass(frozen=True)
class OptionDifference:
    """A leaf of ours that is another one in the published network. said: the keys that say so, none for a constant of its class."""

    key: str
    here: Any
    there: Any
    said: tuple[str, ...]


def plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---- in


def refuse_other(options: Options, found: Any, ours: Leaves, *, place: str, allowed: Sequence[str] = (), parts: bool = False) -> None:
    """Raise ValueError unless a config.json, read from `place`, is one of a network that is ours in every leaf; all differences are named.

    allowed: leaves of ours, or what they begin with, that may be others on purpose; each must be one. parts: the weights are several files.
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
    """Raise ValueError unless a config.json is of this class, of keys that are known, with values that some network here has."""
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
    """Whether a value is a truth, a list of numbers or a number, as the default is; keys without a default take numbers."""
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, list):
        return isinstance(value, list | tuple) and len(value) == len(like) and all(_of_kind(item, 1) for item in value)
    return (value is None and like is None) or (isinstance(value, int | float) and not isinstance(value, bool))


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def differences(options: Options, config: Mapping[str, Any], ours: Leaves, *, place: str) -> list[OptionDifference]:
    """The leaves in which ours is not the network of a published configuration.

    Raises:
        ValueError: a value is of a kind that nothing can be worked out of; the message names its key.
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
    """Without the keys of parts that are other parts altogether."""
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
    """Each published value once, with all of ours that it is not."""
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


# ---- out


def said(options: Options, ours: Leaves, *, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that is nearest to our network: the same one, where the class has a key for all that it is.

    beside: another configuration, of which the keys without effect are kept.
    """
    unread = {key: value for key, value in (beside or {}).items() if key in options.unread and key in options.defaults}
    made = {key: _back(of, ours) for key, of in options.theirs.items()}
    known = {key: value for key, value in made.items() if value is not None}
    fixed = {key: value for key, value in options.only.items() if key in options.defaults}
    return {CLASS: options.names[0], **options.defaults, **fixed, **known, **unread}


def written(options: Options, ours: Leaves, *, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`said`, if it is the same network.

    Raises:
        ValueError: the class cannot say what our network is; the message names each key of ours.
    """
    config = said(options, ours, beside=beside)
    if wrong := differences(options, config, ours, place="this network's configuration"):
        raise ValueError(
            f"{options.names[0]} has no key to say {', '.join(_here(item, options) for item in wrong)}; nothing was written. format=run"
            " writes the network as a run of ours, which says all of it"
        )
    return config


def _back(of: str | From, ours: Leaves) -> Any:
    """A published value; None where ours is no network of that class, which its leaves tell better."""
    if isinstance(of, str):
        return ours[of]
    try:
        return of.make(*(ours[key] for key in of.keys.split()))
    except (TypeError, ArithmeticError):
        return None


def _here(item: OptionDifference, options: Options) -> str:
    """A leaf that cannot be written, with what the class has instead; its keys may be those of other leaves of ours, too."""
    of = [options.theirs.get(key) for key in item.said]
    ours = [key for each in of if each is not None for key in ([each] if isinstance(each, str) else each.keys.split())]
    others = ", ".join(f"dit.{key.removesuffix('._target_')}" for key in ours if key not in GIVEN and key != item.key)
    where = f" by {', '.join(item.said)}" + (f", which {others} gives" if others else "") if item.said else ""
    key = item.key.removesuffix("._target_")
    return f"{'' if item.key in GIVEN else 'dit.'}{key}={_word(_null(item.here))} (it has {_word(_null(item.there))}{where})"


def as_int(ratio: float, width: int) -> float:
    """The ratio, or the next one above it, of which `width` times is a whole number also where what lies behind the point is cut off."""
    return ratio if int(ratio * width) == round(ratio * width) else nextafter(ratio, inf)


def with_variances(channels: int, out: int | None) -> int | None:
    """How many channels a network predicts that may predict a variance beside each of them, which is left behind."""
    return channels if out in (None, channels, 2 * channels) else out


def across(heads: int, head: int, cross: int | None) -> int:
    """The width of a network whose attention to captions must be as wide as itself."""
    if cross != heads * head:
        raise ValueError(f"{cross} is not {heads} times {head}")
    return heads * head
