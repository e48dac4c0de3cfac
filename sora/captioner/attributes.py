"""Attributes of clips, such as their colours: what a captioner's heads answer, and captions with one of them changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sora.captioner.swapping import any_of, swapped


@runtime_checkable
class Attributes(Protocol):
    """Reads attributes from what a dataset says of a clip."""

    @property
    def values(self) -> Mapping[str, Sequence[str]]:
        """The values of each attribute, by its name; empty for none."""
        ...

    def of(self, captions: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """The values that a clip shows, of each attribute that is known of it.

        captions: (kind, text) pairs. facts: the clip's `extra` in the dataset, where `sora prepare` or the user put what is known of it.
        """
        ...

    def told(self, caption: str) -> Mapping[str, Sequence[str]]:
        """The values that a caption names of each attribute, in its order; captions that agree in all of them say the same."""
        ...

    def changed(self, caption: str, draw: np.random.Generator) -> str | None:
        """The caption with one attribute changed, so that it is wrong; None if it names none."""
        ...


class NoAttributes:
    """No attributes: no heads, and the contrastive loss compares a clip with the captions of other clips alone."""

    @property
    def values(self) -> Mapping[str, Sequence[str]]:
        return {}

    def of(self, captions: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        return {}

    def told(self, caption: str) -> Mapping[str, Sequence[str]]:
        return {}

    def changed(self, caption: str, draw: np.random.Generator) -> str | None:
        return None


class WordAttributes:
    """Attributes that captions name by words. Of an attribute that none of a clip's captions names, nothing is known for that clip.

    words: the values of each attribute, each a word or a phrase as captions have it. facts: whether a clip's own facts count first: an
    attribute's name as a key of its `extra`, with a value or a list of values as they stand in `words`.
    """

    def __init__(self, *, words: Mapping[str, Sequence[str]], facts: bool) -> None:
        for name, values in words.items():
            if not name.isidentifier() or len(values) < 2 or len(set(values)) != len(values) or not all(values):
                raise ValueError(
                    f"attributes.words.{name}={list(values)}: it needs a name of letters, and two or more different words as values"
                )
        self._values = {name: tuple(values) for name, values in words.items()}
        self._facts = facts
        self._patterns = {name: any_of(values) for name, values in self._values.items()}

    @property
    def values(self) -> Mapping[str, Sequence[str]]:
        return self._values

    def of(self, captions: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        found = {}
        for name, values in self._values.items():
            said = facts.get(name) if self._facts else None
            known = [str(each) for each in (said if isinstance(said, list | tuple) else [] if said is None else [said])]
            if not known:
                known = [value for _, text in captions for value in self.told(text).get(name, ())]
            shown = tuple(value for value in values if value.lower() in {each.lower() for each in known})
            if shown:
                found[name] = shown
        return found

    def told(self, caption: str) -> Mapping[str, Sequence[str]]:
        found = {name: tuple(match.lower() for match in pattern.findall(caption)) for name, pattern in self._patterns.items()}
        return {name: values for name, values in found.items() if values}

    def changed(self, caption: str, draw: np.random.Generator) -> str | None:
        return swapped(caption, tuple(self._values.values()), draw)
