"""The syntax of values on a command line: plain text, `[lists]`, `{key: mappings}`, and quotes around special characters.

A text goes to the end of the word, character by character. Elements of a list are separated by commas, without surrounding spaces. An
element that begins with a bracket or a quote is a list, a mapping or a quoted text; closed brackets inside an element are part of it. In
quotes of either kind every character is literal, except that `\\'`, `\\"` and `\\\\` are a quote and a backslash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

CLOSING = {"[": "]", "{": "}", "(": ")"}
QUOTES = ("'", '"')


@dataclass(frozen=True)
class Word:
    """One KEY=VALUE or GROUP=OPTION of a command line, with the value as typed."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"

    @property
    def option(self) -> str:
        """The word for Hydra, in quotes, because Hydra would read an option that looks like a number as one."""
        return f"{self.key}={'null' if self.value == 'null' else for_hydra(self.value)}"


def parse(argument: str) -> Word:
    """Parse one word of a command line. Raises ValueError for one that is no KEY=VALUE."""
    key, equals, value = argument.partition("=")
    if key.startswith("~"):
        raise ValueError(f"{argument}: a key cannot be taken away; set it to null, or choose another option of its group")
    if not equals or not key.lstrip("+"):
        raise ValueError(f"{argument!r} is not an option: write KEY=VALUE or GROUP=OPTION")
    return Word(key.lstrip("+"), value)


def for_hydra(value: str) -> str:
    """A value in quotes of Hydra's grammar, in which a backslash is literal except before a quote."""
    body = value.replace("'", "\\'")
    return f"'{body}\\'" if body.endswith("\\") else f"'{body}'"


class Leaf(NamedTuple):
    """A text, and whether it was in quotes, where null and 3 are words."""

    text: str
    quoted: bool = False


Tree = Leaf | list[Any] | dict[str, Any]  # list and dict hold trees


def word(text: str) -> Leaf:
    """A whole value as one text, without its quotes if it is a single quoted text."""
    if text[:1] in ("'", '"'):
        reader = _Reader(text)
        inner = reader.quoted()
        if inner is not None and not reader.rest():
            return Leaf(inner, True)
    return Leaf(text)


def tree(text: str) -> Tree:
    """A whole value as nested lists and mappings of texts, or one text.

    Raises:
        ValueError: a bracket or quote is not closed, an element is empty, or something follows the end.
    """
    if text.strip()[:1] not in ("[", "{"):
        return word(text)
    reader = _Reader(text)
    found = reader.element("")
    if reader.peek():
        raise ValueError(f"{reader.rest()!r} stands behind the end; put the whole in quotes if it is one text")
    return found


def bracketed(text: str) -> bool:
    """Whether a value begins and ends like a list or a mapping."""
    stripped = text.strip()
    return stripped[:1] in ("[", "{") and stripped.endswith(CLOSING[stripped[:1]])


def cut(text: str) -> list[str]:
    """Split a text at the commas outside quotes and brackets: the values of a sweep, as typed, without surrounding spaces."""
    reader, parts, begin = _Reader(text), [], 0
    while True:
        if not (reader.peek() in QUOTES and reader.quoted() is not None and reader.peek() in ("", ",")):
            reader.plain(",")
        parts.append(text[begin : reader.at].strip())
        if not reader.rest():
            return parts if len(parts) > 1 else [text]
        reader.at += 1
        begin = reader.at


def quoted(text: str) -> str:
    """A text in quotes, which is read as itself as a value or an element."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def typed(text: str) -> str:
    """A text as typed as a whole value: in quotes only if it would not be read as itself."""
    return quoted(text) if word(text).quoted or bracketed(text) or text == "null" else text


class _Reader:
    """A text and the position up to which it has been read."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text, self.at = text, at

    def rest(self) -> str:
        return self.text[self.at :]

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def element(self, ends: str) -> Tree:
        """Read a list, mapping or text, up to but without a character of `ends`."""
        begin, first = self.at, self.peek()
        if first == "[":
            found: Tree = self.list()
        elif first == "{":
            found = self.mapping()
        elif first in QUOTES:
            inner = self.quoted()
            if inner is None:
                raise ValueError(f"nothing closes the quote of {self.rest()!r}; a text that begins with a quote stands in the other kind")
            found = Leaf(inner, True)
        else:
            found = Leaf(self.plain(ends).strip())
            if not found.text and self.rest():
                raise ValueError(f"an element before {self.rest()!r} is empty; an empty text is written ''")
        if self.peek() and self.text[self.at] not in ends and ends:
            said = self.text[begin : self.at].strip()
            raise ValueError(f"{self.rest()!r} stands behind the end of {said!r}; put the whole element in quotes")
        return found

    def list(self) -> Tree:
        return [self.element(",]") for _ in self.until("]")]

    def mapping(self) -> Tree:
        found: dict[str, Tree] = {}
        for _ in self.until("}"):
            key = self.element(":,}")
            if not isinstance(key, Leaf) or self.peek() != ":":
                raise ValueError(
                    f"{key.text if isinstance(key, Leaf) else key!r} has no value; a mapping is written {{key: value, key: value}}"
                )
            if key.text in found:
                raise ValueError(f"{key.text!r} stands there twice")
            self.at += 1
            found[key.text] = self.element(",}")
        return found

    def until(self, closing: str) -> Iterator[None]:
        """Yield once for each element of the brackets that open here; at the end the brackets have been read."""
        begin, self.at = self.at, self.at + 1
        if self.peek() != closing:
            yield
            while self.peek() == ",":
                self.at += 1
                yield
        if self.peek() != closing:
            raise ValueError(f"nothing closes the bracket of {self.text[begin:]!r}; an element with a lone bracket stands in quotes")
        self.at += 1

    def quoted(self) -> str | None:
        """Read the quoted text that begins here; if the quotes never close, read nothing and return None."""
        letters, at, quote = [], self.at + 1, self.text[self.at]
        while at < len(self.text) and self.text[at] != quote:
            if self.text[at] == "\\" and self.text[at + 1 : at + 2] in ("'", '"', "\\"):
                at += 1
            letters.append(self.text[at])
            at += 1
        if at >= len(self.text):
            return None
        self.at = at + 1
        return "".join(letters)

    def plain(self, ends: str) -> str:
        """Read the text up to a character of `ends` outside brackets, or to the end."""
        begin, opened = self.at, list[str]()
        while self.at < len(self.text):
            letter = self.text[self.at]
            if not opened and letter in ends:
                break
            if letter in CLOSING:
                opened.append(CLOSING[letter])
            elif opened and letter == opened[-1]:
                opened.pop()
            self.at += 1
        return self.text[begin : self.at]
