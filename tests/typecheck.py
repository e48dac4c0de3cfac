"""The run-time check of annotations under pytest: beartype on every function of the package, as far as a hint can be checked.

Whole numbers pass for floats, as Python itself has it. A hint that beartype cannot judge is left out, and the others of the function
stay: `Self` (functions are decorated one by one, not their classes), protocols that are not runtime-checkable, and names that
are imported for type checkers alone.
"""

import linecache
import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Any) -> Any:
    """`function` with those of its hints checked that can be. Classes (jaxtyping decorates dataclasses' `__init__`) pass as they are."""
    if not isinstance(function, Callable) or isinstance(function, type):
        return typed(function)
    hints = dict(function.__annotations__)
    try:
        function.__annotations__ = {name: hint for name, hint in hints.items() if resolvable(function, hint)}
        try:
            return typed(function)
        except BeartypeDecorHintException:
            function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if judged(function, name, hint)}
            return typed(function)
    finally:
        function.__annotations__ = hints


def resolvable(function: Any, hint: Any) -> bool:
    """Whether a postponed hint means something at run time: now, or once its module is whole."""
    if not isinstance(hint, str):
        return True
    try:
        eval(hint, function.__globals__)
    except NameError as error:
        text = "".join(linecache.getlines(function.__code__.co_filename))
        return re.search(rf"^class {error.name}\b", text, re.MULTILINE) is not None
    except Exception:
        return True
    return True


def judged(function: Any, name: str, hint: Any) -> bool:
    kept, function.__annotations__ = function.__annotations__, {name: hint}
    try:
        typed(function)
    except BeartypeDecorHintException:
        return False
    finally:
        function.__annotations__ = kept
    return True
