"""Annotations are checked under pytest: the hook is in place, and one hint that cannot be judged does not silence the others."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Protocol, Self

import pytest
from torch import int64, ones

from sora.system import draws
from tests.typecheck import check, check_package


class Speaks(Protocol):
    def speak(self) -> str: ...


WRONG = "Type-check error|violates type hint"

TOY = """
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

import toy_neighbour

if TYPE_CHECKING:
    from nowhere import Nothing


def halved(x: Float[Tensor, "N D"], y: Float[Tensor, "N D"], later: Later | None = None) -> Float[Tensor, "N"]:
    return (x[:, 0] + y[:, 0])[: len(x) // 2] if later is None else x[:, 0]


def outer(x: Float[Tensor, "N D"], y: Float[Tensor, "N"]) -> Float[Tensor, "N D"]:
    halved(y[None], y[None], Later(1))
    return x * y[:, None]


def unknown(odd: Nothing, number: int) -> int:
    def inner(text: str) -> str:
        return text

    inner(number if odd else "text")
    return number


@contextmanager
def lent(x: Float[Tensor, "N"]) -> Iterator[Float[Tensor, "M"]]:
    yield x[1:]


@dataclass(frozen=True)
class Later:
    size: int
    x: Float[Tensor, "N"] | None = None
    y: Float[Tensor, "N"] | None = None

    @property
    def half(self) -> int:
        return self.size / 2

    @classmethod
    def of(cls, size: int) -> Later:
        return cls(size)

    @staticmethod
    def twice(size: int) -> int:
        return 2 * size
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module that is checked, and beside it one of another package that it imports, which is not."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    (folder / "toy_neighbour.py").write_text("def number(x: int) -> int:\n    return x\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "meta_path", [*sys.meta_path])
        patch.setattr(sys, "dont_write_bytecode", False)
        check_package("toy")
        yield importlib.import_module("toy")


def test_the_hook_checks_the_package():
    with pytest.raises(Exception, match=WRONG):
        draws.sample_id(3)


def test_what_comes_and_what_goes_is_checked(toy: ModuleType):
    with pytest.raises(Exception, match=WRONG):
        toy.outer(ones(2, 3), "two")
    with pytest.raises(Exception, match=WRONG):
        toy.halved(ones(2, 3, dtype=int64), ones(2, 3))
    with pytest.raises(Exception, match=WRONG):
        toy.Later("one")
    with pytest.raises(Exception, match=WRONG):
        toy.Later.of("one")
    with pytest.raises(Exception, match=WRONG):
        toy.Later.twice(1.5)
    with pytest.raises(Exception, match=WRONG):
        _ = toy.Later(1).half
    with pytest.raises(Exception, match=WRONG):
        toy.lent(1)


def test_an_axis_is_one_size_in_a_call_and_another_in_the_next(toy: ModuleType):
    assert toy.outer(ones(2, 3), ones(2)).shape == (2, 3)
    assert toy.outer(ones(5, 4), ones(5)).shape == (5, 4)  # and N and D stand for others in `halved`, which it calls
    with pytest.raises(Exception, match=WRONG):
        toy.outer(ones(2, 3), ones(3))
    with pytest.raises(Exception, match=WRONG):
        toy.halved(ones(2, 3), ones(2, 3))  # what it gives has half the N of what came
    with pytest.raises(Exception, match=WRONG):
        toy.Later(1, ones(2), ones(3))
    with toy.lent(ones(3)) as rest:
        assert len(rest) == 2


def test_functions_in_functions_are_checked_and_a_name_for_type_checkers_alone_is_not(toy: ModuleType):
    assert toy.unknown(None, 3) == 3
    with pytest.raises(Exception, match=WRONG):
        toy.unknown("odd", 3)


def test_other_packages_are_left_alone_and_byte_code_of_checked_modules_lies_apart(toy: ModuleType):
    assert toy.toy_neighbour.number("any") == "any"
    kept = {path.name.split(".")[0]: path for path in (Path(toy.__file__).parent / "__pycache__").iterdir()}
    assert {name: ".checked-" in path.name for name, path in kept.items()} == {"toy": True, "toy_neighbour": False}
    written = kept["toy"].stat().st_mtime_ns
    assert "__checked__" in toy.__spec__.loader.get_code("toy").co_names
    assert kept["toy"].stat().st_mtime_ns == written
    assert "__checked__" not in SourceFileLoader("toy", toy.__file__).get_code("toy").co_names


@pytest.mark.parametrize(
    "hint", ["Self", "Speaks", "NowhereAtAll", "NowhereAtAll | None", Sequence[tuple["NowhereAtAll", int]], Self, Speaks]
)
def test_a_hint_that_cannot_be_judged_leaves_the_others(hint):
    def function(odd, number: int) -> int:
        return number

    function.__annotations__["odd"] = hint
    checked = check(function)
    assert checked(object(), 3) == 3
    with pytest.raises(Exception, match=WRONG):
        checked(object(), "three")


def test_whole_numbers_pass_for_floats():
    def half(number: float) -> float:
        return number / 2

    assert check(half)(3) == 1.5
