"""Whether decoding can begin at a keyframe and leave what came before behind: told by the first bytes of its units, nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterator

_IDR = {"h264": (5,), "hevc": (16, 17, 18, 19, 20)}  # ITU-T H.264 table 7-1; H.265 table 7-1, with the broken links that nothing leads into
_PICTURES = {"h264": range(1, 6), "hevc": range(32)}


def closed(packet: bytes | memoryview, codec: str, extradata: bytes) -> bool:
    """Whether the group of pictures that a keyframe's packet begins refers to nothing before it. True for codecs that know no other."""
    if codec not in _IDR:
        return True
    for first in _units(memoryview(packet), codec, extradata):
        kind = first & 31 if codec == "h264" else first >> 1 & 63
        if kind in _PICTURES[codec]:
            return kind in _IDR[codec]
    return False


def _units(packet: memoryview, codec: str, extradata: bytes) -> Iterator[int]:
    """The first byte of every unit of a packet: behind lengths (in mp4 and Matroska), or behind start codes (in transport streams)."""
    place = 4 if codec == "h264" else 21
    if extradata[:1] == b"\x01" and len(extradata) > place:
        width, at = (extradata[place] & 3) + 1, 0
        while at + width < len(packet):
            yield packet[at + width]
            at += width + int.from_bytes(packet[at : at + width], "big")
        return
    content = bytes(packet)
    at = content.find(b"\0\0\1")
    while 0 <= at < len(content) - 3:
        yield content[at + 3]
        at = content.find(b"\0\0\1", at + 3)
