"""The run-time check of annotations under pytest: every function of the package is decorated as it is imported, and checked from its
first call on; beartype judges the hints, jaxtyping the shapes among them, whose axes mean the same in all hints of one call.

Whole numbers pass for floats, as Python itself has it. A hint that beartype cannot judge is left out, and the others of the function
stay: `Self` (functions are decorated one by one, not their classes), protocols that are not runtime-checkable, and names that
are imported for type checkers alone.

jaxtyping's own hook does the same, at several times the cost: it checks the parameters of each call twice, decorates what is never
called, and has every package that the tested one imports compiled anew.
"""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from jaxtyping import jaxtyped

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
AXES = jaxtyped("context")  # entered for each call: within it the name of an axis stands for one size
HERE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def checked(thing: Any) -> Any:
    """A function, checked from its first call on; or a class: what a dataclass is made of is checked, other classes pass as they are."""
    if isinstance(thing, type):
        made = vars(thing).get("__init__")
        if "__dataclass_fields__" in vars(thing) and made is not None and inspect.unwrap(made) is made:
            thing.__init__ = checked(made)
        return thing
    if not thing.__annotations__ or thing.__name__ == "__del__":  # which runs when nothing can be imported any more, too
        return thing
    known = None

    @functools.wraps(thing)
    def within(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal known
        # a generator's body runs later, among the axes of whoever asks for the next item: it is judged from outside
        known = known or (jaxtyped(thing, typechecker=check) if inspect.isgeneratorfunction(thing) else check(thing))
        with AXES:
            return known(*args, **kwargs)

    return within


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with those of its hints checked that can be."""
    hints = dict(function.__annotations__)
    try:
        function.__annotations__ = {name: hint for name, hint in hints.items() if resolvable(function, hint)}
        try:
            return typed(function)
        except BeartypeDecorHintException as error:
            forget(error)
            function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if judged(function, name, hint)}
            return typed(function)
    finally:
        function.__annotations__ = hints


def resolvable(function: Any, hint: Any) -> bool:
    """Whether all names of a hint mean something, now that its module is whole; those within postponed ones and aliases, too."""
    try:
        get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), function.__globals__)
    except NameError:
        return False
    except Exception:
        return True
    return True


def forget(error: BaseException | None) -> None:
    """Let go of the frames that an error came through: beartype leaves circles of them, which would hold what their callers have."""
    while error is not None:
        error.__traceback__, error = None, error.__cause__ or error.__context__


def judged(function: Any, name: str, hint: Any) -> bool:
    kept, function.__annotations__ = function.__annotations__, {name: hint}
    try:
        typed(function)
    except BeartypeDecorHintException as error:
        forget(error)
        return False
    finally:
        function.__annotations__ = kept
    return True


class Loader(SourceFileLoader):
    """Loads a module with `checked` before each function and class. Its byte code is kept apart from that of the module as it stands."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.decorator_list.append(mark(node))  # the first to be applied: what other decorators make of it is theirs
            elif isinstance(node, ast.ClassDef):
                node.decorator_list.insert(0, mark(node))  # the last, when the class is a dataclass
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__checked__"] = checked
        super().exec_module(module)

    def get_data(self, path: str) -> bytes:
        return super().get_data(apart(path))

    def set_data(self, path: str, data: Any, **mode: int) -> None:
        super().set_data(apart(path), data, **mode)


def mark(node: ast.FunctionDef | ast.ClassDef) -> ast.expr:
    return ast.copy_location(ast.Name("__checked__", ast.Load()), node)


def apart(path: str) -> str:
    return path.removesuffix(".pyc") + f".checked-{HERE}.pyc" if path.endswith(".pyc") else path


class Finder(MetaPathFinder):
    """Finds the modules of one package for `Loader`."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def check_package(package: str) -> None:
    """Check every module of `package` that is imported from now on."""
    sys.meta_path.insert(0, Finder(package))
