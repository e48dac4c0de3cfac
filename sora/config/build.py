"""Builds the objects that a configuration names: `build(config.dit, patch_channels=64)`.

A node names a class or a function by `_target_`; its other keys are arguments. A class is constructed; a function is returned as a
`functools.partial` of its arguments. The whole tree is checked before anything is built. The check is of the resolved *object*, not of its
spelling, so that an alias, a re-exported module or an interpolation cannot call anything else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError

from sora.config import own
from sora.config.roles import refuse_other, written
from sora.config.targets import TARGET, allowed, find, refuse
from sora.config.words import listed, meant
from sora.gate.interpolation_limits import refuse_growth, refuse_resolvers
from sora.gate.sizes import refuse_size

NETWORKS = ("sora.dit", "sora.vae", "sora.text", "sora.patches")  # in these rooms, integers are sizes of what is built
OBJECT = re.compile(r"(?!Any\b|Path\b)[A-Z]\w*( \| None)?")  # the name of one class or one function type
NUMBERS = re.compile(r"Sequence\[(?P<kind>int|float)\]( \| None)?")
# A parameter with such an annotation holds a plain value; a `_target_` under it would be an unexpected call.
PLAIN = re.compile(r"(\s|[|,\[\]().]|\b(int|float|str|bool|None|tuple|list|Sequence|Path|Literal)\b)*")


def build(node: DictConfig | Mapping[str, Any], **values: Any) -> Any:
    """Construct the class, or bind the function, that `node` names, with its keys and with `values` that the program computed.

    Lists are passed as tuples unless the parameter is annotated `list[...]`, and integers as floats where a float is annotated. Raises
    ValueError for a target that is not allowed, for an unknown, duplicate or missing key, and for a value of the wrong type.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ValueError(f"{node!r} has no _target_: choose an option of its group")
    tree = plain(node)
    _check(tree, set(values), place=_key(node) or str(tree[TARGET]), inner=False)
    return _make(tree, values)


def _key(node: Any) -> str:
    """The key of a node in its configuration, such as `dit`, for messages; empty if it has none."""
    return str(node._get_full_key("")) if isinstance(node, DictConfig) else ""


def plain(node: DictConfig | Mapping[str, Any]) -> Any:
    """The node as dicts, lists and scalars with references resolved; raises ValueError for resolvers such as `${oc.env:HOME}`."""
    try:
        return _plain(node)
    except GrammarParseError as error:
        raise ValueError(f"a reference cannot be read: {str(error).splitlines()[0]}") from None


def _plain(node: DictConfig | Mapping[str, Any]) -> Any:
    config = node if OmegaConf.is_config(node) else OmegaConf.create(dict(node))
    tree: Any = OmegaConf.to_container(config, resolve=False)
    refuse_resolvers(tree)
    root = config._get_root()
    if root is not config and OmegaConf.is_config(root):  # a reference may point outside the node, to a resolver
        tree = {key: value for key, value in OmegaConf.to_container(root, resolve=False).items() if key != "hydra"}
        refuse_resolvers(tree)
    refuse_growth(str(tree))
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def resolve(target: str) -> Callable[..., Any]:
    """The object that a target names. It is imported only if its name is allowed, and must be defined in the module that it names."""
    definition = find(target)
    module, _, name = target.rpartition(".") if definition is None else (definition.module, "", definition.node.name)
    found = getattr(own.load(module) if own.module_of(target) else importlib.import_module(module), name, None)
    if not inspect.isclass(found) and not inspect.isfunction(found):
        raise refuse(target, f"it is {type(found).__name__}, not a class or a function")
    if definition is not None and (found.__module__, found.__qualname__) != (module, name):
        raise refuse(target, f"it is {found.__module__}.{found.__qualname__}")
    return found


def _check(tree: dict[str, Any], given: set[str], place: str, *, inner: bool) -> None:
    """Check every target and key of a tree before any is built. inner: the node lies inside another, so its caller adds no keys."""
    target = allowed(tree[TARGET])
    made = resolve(target)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # *args and **kwargs are no keys
    parameters = {name: item for name, item in inspect.signature(made).parameters.items() if item.kind not in several}
    keys = [key for key in tree if key != TARGET]
    if made.__module__.startswith(NETWORKS):
        for key in keys:
            refuse_size(f"{place}.{key}", tree[key])
    known = [name for name in parameters if name not in given]
    for key in keys:
        if key in given:
            raise ValueError(f"{place}: {key} is worked out by the program and cannot be set")
        if key not in parameters:
            raise ValueError(f"{target} has no key {key!r}{meant(str(key), known)}; its keys: {listed(known)}")
        annotation = written(parameters[key].annotation)
        for node in _nodes(tree[key]):
            if annotation and PLAIN.fullmatch(annotation):
                raise ValueError(f"{place}.{key} takes {annotation}, not an object; {node[TARGET]} is refused there")
            _check(node, set(), place=f"{place}.{key}", inner=True)
            if node is tree[key]:
                refuse_other(annotation, made.__module__, resolve(node[TARGET]), f"{place}.{key}", said=node)
    unknown = given - set(parameters)
    if unknown:
        raise ValueError(
            f"{target} does not take {listed(unknown)}, which the program gives it (its keys: {listed(parameters)}); choose another option"
        )
    missing = [name for name, item in parameters.items() if item.default is item.empty and name not in tree and name not in given]
    if not inspect.isclass(made):  # a function's caller passes its positional arguments
        missing = [name for name in missing if inner and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    if missing:
        beside = f", or beside its name: {place.rpartition('.')[2]}={{{TARGET}: {target}, {missing[0]}: …}}" if inner else ""
        raise ValueError(f"{target} needs {listed(missing)}: set it in the YAML of its group{beside}")


def _nodes(value: Any) -> list[dict[str, Any]]:
    """The outermost nodes with a target inside a value."""
    if isinstance(value, dict):
        return [value] if TARGET in value else [node for inner in value.values() for node in _nodes(inner)]
    if isinstance(value, list):
        return [node for inner in value for node in _nodes(inner)]
    return []


def _make(tree: dict[str, Any], values: Mapping[str, Any]) -> Any:
    target = tree[TARGET]
    made = resolve(target)
    parameters = inspect.signature(made).parameters
    settings = {key: _value(value, written(parameters[key].annotation), f"{target} {key}") for key, value in tree.items() if key != TARGET}
    if inspect.isclass(made):
        return made(**settings, **values)
    return functools.partial(made, **settings, **values)


def _value(value: Any, annotation: str, place: str) -> Any:
    """A YAML value in the form that the parameter takes: nested nodes built, lists as tuples, integers as floats."""
    if isinstance(value, dict):
        if TARGET in value:
            return _make(value, {})
        fitting(value, annotation, place)
        return {key: _value(inner, "", f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        fitting(value, annotation, place)
        items = [_value(item, "float" if "float" in annotation and "int" not in annotation else "", place) for item in value]
        return items if annotation.startswith("list") else tuple(items)
    return fitting(value, annotation, place)


def fitting(value: Any, annotation: str, place: str) -> Any:
    """Return `value`, which is no node, if it fits a plain annotation such as `int`, `float | None` or `Sequence[int]`; raise ValueError if
    it does not, or if a function or an object is needed. Values with other annotations are returned unchecked."""
    if value is None and annotation.endswith("| None"):
        return value
    if annotation.startswith("Callable[") or OBJECT.fullmatch(annotation):
        raise ValueError(f"{place}={value!r} is of the wrong kind: it takes a function or an object, by its _target_")
    if numbers := NUMBERS.fullmatch(annotation):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{place}={value!r} is of the wrong kind: it takes a list of numbers")
        return type(value)(fitting(item, numbers["kind"], place) for item in value)
    kinds = {kind.strip() for kind in annotation.split("|")}
    if not kinds <= {"int", "float", "bool", "str", "None"}:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and "float" in kinds and "int" not in kinds:
        return float(value)
    if isinstance(value, float) and value.is_integer() and "int" in kinds and "float" not in kinds:
        return int(value)
    if ("None" if value is None else type(value).__name__) not in kinds:
        raise ValueError(f"{place}={value!r} is of the wrong kind: it takes {annotation}")
    return value
