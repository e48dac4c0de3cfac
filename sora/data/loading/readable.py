"""Reading a planned clip, or another one in its place: the one rule for latents, videos and frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sora.data.index.index import Index
from sora.data.loading.quarantine import BadClip, Quarantine, owner
from sora.data.plan.steps import Item, Plan
from sora.system.draws import sample_id

T = TypeVar("T")


@contextmanager
def of_the_clip() -> Iterator[None]:
    """Raise `BadClip` for a ValueError inside: what is read there is a clip's own bytes, so the clip is at fault. Any other ValueError is a
    mistake of the program's, which must not pass for a bad clip."""
    try:
        yield
    except BadClip:
        raise
    except ValueError as error:
        raise BadClip(str(error)) from error


def first_readable(
    planned: Item, read: Callable[[Item], T], *, plan: Plan, quarantine: Quarantine, locate: Callable[[Item], tuple[Index, int]]
) -> tuple[T | None, str]:
    """What `read` gives of the planned clip, or of the first one that may stand in for it and can be read; None, and why, where no other
    fits in its place.

    Each clip that cannot be read, for which `read` raises `BadClip`, is noted in the quarantine. locate: the dataset and the row of an
    item.
    """
    item, attempt = planned, 0
    while True:
        index, row = locate(item)
        member, dataset = index.member(row), owner(index)
        sample = sample_id(member.key, item.window)
        try:
            quarantine.refuse(member.key, **dataset, sample=sample)
            return read(item), ""
        except BadClip as error:
            quarantine.add(member.key, shard=member.shard, reason=str(error), **dataset, sample=sample)
            substitute = plan.replacement(planned, attempt)
            if substitute is None:
                return None, str(error)
            item, attempt = substitute, attempt + 1
