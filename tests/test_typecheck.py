"""Annotations are checked under pytest: the hook is in place, and one hint that cannot be judged does not silence the others."""

from typing import Protocol, Self

import pytest

from sora import draws
from tests.typecheck import check


class Speaks(Protocol):
    def speak(self) -> str: ...


def test_the_hook_checks_the_package():
    with pytest.raises(Exception, match="Type-check error|violates type hint"):
        draws.sample_id(3)


@pytest.mark.parametrize("hint", ["Self", "Speaks", "NowhereAtAll", "NowhereAtAll | None", Self, Speaks])
def test_a_hint_that_cannot_be_judged_leaves_the_others(hint):
    def function(odd, number: int) -> int:
        return number

    function.__annotations__["odd"] = hint
    checked = check(function)
    assert checked(object(), 3) == 3
    with pytest.raises(Exception, match="violates type hint"):
        checked(object(), "three")


def test_whole_numbers_pass_for_floats():
    def half(number: float) -> float:
        return number / 2

    assert check(half)(3) == 1.5
