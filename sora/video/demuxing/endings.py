"""Whether the end of a file was cut off, by the structure of its container: every element that begins in the file must end in it.

Containers whose header counts the frames need no such check. A cut exactly between two elements cannot be found if nothing else says how
long the file was.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from sora.video.reader import Source

_CLUSTER, _SEGMENT = 0x1F43B675, 0x18538067  # Matroska's (RFC 9559, 5.1)
_PACKETS = {188: 0, 192: 4, 204: 0}  # packet size of a transport stream: bytes before the sync byte (ISO/IEC 13818-1, 2.4.3.2)
_MARK, _MARKS = 0x47, 4
_HEAD = 16  # bytes that hold the type and length of an element in each container


def cut_off(source: Source, container: str) -> str:
    """The element in which the file ends, as a text; "" if no cut is found. container: FFmpeg's name of its kind."""
    look = next((look for kind, look in _LOOKS.items() if container.startswith(kind)), None)
    if look is None:
        return ""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        return look(file, file.seek(0, os.SEEK_END))


def _boxes(file: io.BufferedIOBase, size: int) -> str:
    """`cut_off` of an mp4, which is a sequence of boxes (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < size:
        head = _at(file, at)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == _HEAD:
            length = int.from_bytes(head[8:], "big")
        if len(head) == _HEAD and (length < 8 or not name.isascii()):  # 0: up to the end of the file; else this is no box
            return ""
        if len(head) < 8 or at + length > size:
            return f"a box of {length} bytes" if len(head) >= 8 else "a box"
        at += length
    return ""


def _elements(file: io.BufferedIOBase, size: int) -> str:
    """`cut_off` of a Matroska file, which is a sequence of elements; elements of unknown length are entered."""
    at = 0
    while at < size:
        head = _at(file, at)
        name, first = _number(head, marked=True)
        length, after = _number(head[first:]) if first else (None, 0)
        if head[0] == 0:  # no element begins with 0
            return ""
        if not after:
            return "an element" if len(head) < _HEAD else ""
        within = at + first + after
        if length is None:
            if name not in (_SEGMENT, _CLUSTER):
                return ""
            at = within
        elif within + length > size:
            return "its segment" if name == _SEGMENT else "a cluster" if name == _CLUSTER else "a block"
        elif name == _SEGMENT:
            return ""
        else:
            at = within + length
    return ""


def _number(data: bytes, *, marked: bool = False) -> tuple[int | None, int]:
    """An EBML number (RFC 8794, 4) and its size in bytes, 0 if it is none. marked: keep the length marker, as in element IDs. The number is
    None for an unknown length."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return None, 0
    whole, mark = int.from_bytes(data[:width], "big"), 1 << 7 * width
    if marked:
        return whole, width
    return (None if whole == 2 * mark - 1 else whole - mark), width


def _tags(file: io.BufferedIOBase, size: int) -> str:
    """`cut_off` of an FLV, a sequence of tags, each with its length before and after it (Adobe Flash Video File Format, E.3 and E.4)."""
    at = int.from_bytes(_at(file, 0)[5:9], "big") + 4
    while at < size:
        head = _at(file, at)
        if head[0] & 0x1F not in (8, 9, 18):
            return ""
        at += 11 + int.from_bytes(head[1:4], "big")
        if len(head) < 4 or at > size:
            return "a tag"
        at += 4
    return ""


def _packets(file: io.BufferedIOBase, size: int) -> str:
    """`cut_off` of a transport stream, which is a sequence of packets of one size, each with a sync byte."""
    file.seek(0)
    head = file.read((_MARKS + 1) * max(_PACKETS))
    for length, before in _PACKETS.items():
        for begin in range(length):
            marks = range(begin + before, begin + before + _MARKS * length, length)
            if marks[-1] < len(head) and all(head[place] == _MARK for place in marks):
                return "a packet" if (size - begin) % length else ""
    return ""


def _at(file: io.BufferedIOBase, place: int) -> bytes:
    file.seek(place)
    return file.read(_HEAD)


_LOOKS: dict[str, Callable[[io.BufferedIOBase, int], str]] = {"mov": _boxes, "matroska": _elements, "flv": _tags, "mpegts": _packets}
