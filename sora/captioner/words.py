"""The vocabulary of a captioner: the words of its training captions, and bytes for all others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sora.system.files import text_hash

PADDING, END, HIDDEN = 0, 1, 2  # ids of no word, of the end of a caption, and of a word that the decoder is not shown
SPECIAL = 3
BYTES = 256
PIECE = re.compile(r" ?\w[\w'-]*| ?[^\w\s]+|\s")  # every character is in one piece, so that captions come back as they were


class Words:
    """Maps captions to ids and back, without loss for any text.

    The ids are those of padding, end and hidden words, a start for each kind of caption, the 256 bytes, and the words. A word has the
    space before it with it, so that "red" and " red" differ. A word that is not in the list is written in its UTF-8 bytes.
    kinds: of captions, such as "short" and "dense". words: the list, each once.
    """

    def __init__(self, *, kinds: Sequence[str], words: Sequence[str]) -> None:
        if not kinds or len(set(kinds)) != len(kinds):
            raise ValueError(f"kinds={list(kinds)}: name at least one kind of captions, each once")
        self.kinds, self.words = tuple(kinds), tuple(words)
        self._first_byte = SPECIAL + len(self.kinds)
        self._first_word = self._first_byte + BYTES
        self._ids = {word: self._first_word + number for number, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("the vocabulary has a word twice; it is damaged")

    def __len__(self) -> int:
        return self._first_word + len(self.words)

    @property
    def fingerprint(self) -> str:
        return text_hash(self.to_json())

    def start(self, kind: str) -> int:
        """The id that a caption of a kind starts with. ValueError for a kind that the captioner does not write."""
        if kind not in self.kinds:
            raise ValueError(f"kind={kind}: this captioner writes captions of the kinds {', '.join(self.kinds)}")
        return SPECIAL + self.kinds.index(kind)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        found: list[int] = []
        for piece in PIECE.findall(text):
            known = self._ids.get(piece)
            found += [known] if known is not None else [self._first_byte + byte for byte in piece.encode("utf-8", "surrogatepass")]
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the end. Ids that are neither bytes nor words are passed over; bytes that are no UTF-8 become U+FFFD."""
        found = bytearray()
        for number in ids:
            if number == END:
                break
            if number >= self._first_word:
                found += self.words[number - self._first_word].encode("utf-8", "surrogatepass")
            elif number >= self._first_byte:
                found.append(number - self._first_byte)
        return found.decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"kinds": list(self.kinds), "words": list(self.words)}, ensure_ascii=True, indent=1)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Words:
        """The vocabulary that `to_json` wrote, from the parsed JSON."""
        return cls(kinds=value["kinds"], words=value["words"])


def words_of(captions: Iterable[tuple[str, str]], *, kinds: Sequence[str], most: int, least: int) -> Words:
    """The vocabulary of some captions, (kind, text) pairs: at most `most` words, each of which occurs at least `least` times.

    Raises:
        ValueError: no caption is of one of the kinds, or a kind has none.
    """
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for kind, text in captions:
        if kind in kinds:
            counts.update(PIECE.findall(text))
        seen[kind] += 1
    if missing := [kind for kind in kinds if not seen[kind]]:
        there = f"their kinds are {', '.join(sorted(seen))}" if seen else "they have no captions"
        raise ValueError(f"kinds={list(kinds)}: no clip of these datasets has a caption of kind {missing[0]}; {there}")
    often = [piece for piece, count in counts.items() if count >= least]
    return Words(kinds=kinds, words=sorted(often, key=lambda piece: (-counts[piece], piece))[:most])
