"""A bad clip makes way for another one, is named once, and nothing but a bad clip passes for one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sora.data.loading.quarantine import BadClip, Quarantine, first_readable, of_the_clip
from sora.data.plan.steps import Item


class Plan:
    """Row r + 1 stands in for row r, up to row 9."""

    def __init__(self):
        self.skipped = {}

    def at(self, step):
        raise AssertionError

    def replacement(self, planned, attempt):
        row = planned.row + attempt + 1
        return Item(row=row, epoch=planned.epoch) if row < 10 else None


INDEX = SimpleNamespace(
    folder=Path("set"), dataset_fingerprint="f", member=lambda row: SimpleNamespace(key=f"key-{row}", shard="video-000000.tar")
)


def asked(read, *, row=3, quarantine=None):
    quarantine = quarantine or Quarantine(None, clips=100, max_share=1.0)
    given = {"plan": Plan(), "quarantine": quarantine, "locate": lambda item: (INDEX, item.row)}
    return first_readable(Item(row=row, epoch=0), read, **given), quarantine


def bad_below(most):
    def read(item):
        if item.row < most:
            raise BadClip(f"row {item.row} is broken")
        return item.row

    return read


def test_the_first_that_can_be_read_is_taken_and_the_others_are_named():
    (found, why), quarantine = asked(bad_below(6))
    assert (found, why) == (6, "") and quarantine.keys() == {"key-3", "key-4", "key-5"}


def test_a_clip_that_is_known_to_be_bad_is_not_read_again():
    tried = []
    _, quarantine = asked(bad_below(5))
    (found, _), _ = asked(lambda item: tried.append(item.row) or item.row, quarantine=quarantine)
    assert found == 5 and tried == [5]


def test_where_nothing_else_fits_the_last_reason_is_told():
    (found, why), quarantine = asked(bad_below(99), row=7)
    assert found is None and why == "row 9 is broken" and quarantine.keys() == {"key-7", "key-8", "key-9"}


@pytest.mark.parametrize("error", [ValueError("operands could not be broadcast together"), KeyError("x"), RuntimeError("x")])
def test_a_mistake_of_the_program_is_no_bad_clip(error):
    """As a bug in cutting or patching would raise it. It passed for a bad clip: all were quarantined, one after another."""

    def read(item):
        raise error

    quarantine = Quarantine(None, clips=100, max_share=1.0)
    with pytest.raises(type(error), match=str(error.args[0])):
        asked(read, quarantine=quarantine)
    assert quarantine.keys() == set()


def test_what_a_clips_own_bytes_raise_is_a_bad_clip():
    with pytest.raises(BadClip, match="cut short"), of_the_clip():
        raise ValueError("cut short")
    with pytest.raises(RuntimeError), of_the_clip():
        raise RuntimeError
