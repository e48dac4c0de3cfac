"""Whether JSON that was read from a dataset's folder is of the form that the program wrote: it may be damaged, or a stranger's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Form = Callable[[Any], bool] | dict[str, Any] | list[Any]


def fits(value: Any, form: Form) -> bool:
    """A form is a test of a value, a dict of the forms of what must be there, or a list with the form of each item."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(name in value and fits(value[name], inner) for name, inner in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    return form(value)


def text(value: Any) -> bool:
    return isinstance(value, str)


def count(value: Any) -> bool:
    """A whole number from 0 that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def some(value: Any) -> bool:
    return count(value) and value > 0


def positive(value: Any) -> bool:
    """A number from 0 that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def inside(value: Any) -> bool:
    """The name of a file below the folder."""
    return isinstance(value, str) and bool(value) and not value.startswith("/") and ".." not in value.split("/")


def maybe(form: Form) -> Form:
    return lambda value: value is None or fits(value, form)


def named(form: Form) -> Form:
    """A dict of whatever names."""
    return lambda value: isinstance(value, dict) and all(fits(inner, form) for inner in value.values())
