"""Where decoding can begin, from the first bytes of a keyframe's packet, without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

_PICTURES = {"h264": range(1, 6), "hevc": range(32)}  # ITU-T H.264 table 7-1; H.265 table 7-1
_IDR, _MESSAGES, _RECOVERY_POINT = 5, 6, 6  # H.264: two types of a NAL unit, and one of an SEI message (annex D)
_CLOSED_HEVC, _CRA = range(16, 21), 21  # H.265: IDR and broken-link pictures, without leading pictures to decode; clean random access
_ALONE = ("mjpeg", "prores", "dnxhd", "dvvideo", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "v210")  # intra only


class GopType(Enum):
    """How the frames after a keyframe depend on earlier ones. CLOSED: none refers to a frame before the keyframe. OPEN: none that is shown
    after the keyframe does, but frames that follow it in the file and are shown before it do. NONE: frames are not known to be whole from
    this packet on, as with gradual refresh."""

    CLOSED = "closed"
    OPEN = "open"
    NONE = "none"


def entry(packet: bytes | memoryview, codec: str, extradata: bytes) -> GopType:
    """The group type of a packet from its own bytes: packets that containers mark as keyframes are not always ones.

    NONE for codecs that are not known here.
    """
    view = memoryview(packet)
    if codec in _PICTURES:
        return _of_units(view, codec, extradata)
    if codec in _ALONE:
        return GopType.CLOSED
    return _BY_HEADER[codec](bytes(view[:_HEADER])) if codec in _BY_HEADER and len(view) else GopType.NONE


def _of_units(packet: memoryview, codec: str, extradata: bytes) -> GopType:
    recovers = False
    for unit in _units(packet, codec, extradata):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if codec == "h264" and kind == _MESSAGES:
            recovers = recovers or _exact(unit)
        if kind not in _PICTURES[codec]:
            continue
        if codec == "h264":
            return GopType.CLOSED if kind == _IDR else GopType.OPEN if recovers else GopType.NONE
        return GopType.CLOSED if kind in _CLOSED_HEVC else GopType.OPEN if kind == _CRA else GopType.NONE
    return GopType.NONE


def _units(packet: memoryview, codec: str, extradata: bytes) -> Iterator[memoryview]:
    """The non-empty NAL units of a packet, which follow lengths (in mp4 and Matroska) or start codes (in transport streams)."""
    place = 4 if codec == "h264" else 21
    if extradata[:1] == b"\x01" and len(extradata) > place:
        width, at = (extradata[place] & 3) + 1, 0
        while at + width < len(packet):
            length = int.from_bytes(packet[at : at + width], "big")
            if length:
                yield packet[at + width : at + width + length]
            at += width + length
        return
    content = bytes(packet)
    at = content.find(b"\0\0\1")
    while 0 <= at < len(content) - 3:
        after = content.find(b"\0\0\1", at + 3)
        yield packet[at + 3 : after if after >= 0 else None]
        at = after


def _exact(messages: memoryview) -> bool:
    """Whether SEI messages say that output is exact from this picture on: recovery_frame_cnt 0 and exact_match_flag 1 (H.264, D.1.8)."""
    content = bytes(messages[1:]).replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(content):
        kind, at = _sum(content, at)
        size, at = _sum(content, at)
        if kind == _RECOVERY_POINT and at < len(content):
            return content[at] & 0xC0 == 0xC0
        at += size
    return False


def _sum(content: bytes, at: int) -> tuple[int, int]:
    """A number that is stored as a sum of bytes, all 255 but the last, and the position after it."""
    total = 0
    while at < len(content):
        total, last, at = total + content[at], content[at] < 255, at + 1
        if last:
            break
    return total, at


_HEADER = 4096  # bytes within which the first picture of a packet begins


def _mpeg2(content: bytes) -> GopType:
    """MPEG-1 and MPEG-2 (ITU-T H.262, 6.2.2.6 and 6.2.3): for an I picture CLOSED if its group says so, else OPEN."""
    group, picture = content.find(b"\0\0\1\xb8"), content.find(b"\0\0\1\0")
    if picture < 0 or content[picture + 5 : picture + 6] == b"" or content[picture + 5] >> 3 & 7 != 1:
        return GopType.NONE
    return GopType.CLOSED if 0 <= group < picture and content[group + 7] & 0x40 else GopType.OPEN


def _mpeg4(content: bytes) -> GopType:
    """MPEG-4 part 2 (6.2.5): OPEN for an I-VOP."""
    at = content.find(b"\0\0\1\xb6")
    return GopType.OPEN if 0 <= at < len(content) - 4 and content[at + 4] >> 6 == 0 else GopType.NONE


def _vp8(content: bytes) -> GopType:
    """VP8 (RFC 6386, 9.1): CLOSED for a key frame."""
    return GopType.NONE if content[0] & 1 else GopType.CLOSED


def _vp9(content: bytes) -> GopType:
    """VP9 (bitstream specification, 6.2): CLOSED for a key frame that is shown; the header of profile 3 has one bit more."""
    bits = content[0] << 1 if content[0] & 0x30 == 0x30 else content[0]
    return GopType.CLOSED if bits & 0x0E == 0x02 else GopType.NONE


def _av1(content: bytes) -> GopType:
    """AV1 (bitstream specification, 5.3 to 5.9): CLOSED for a key frame that is shown, after a sequence header."""
    at, told = 0, False
    while at < len(content):
        kind, extended, sized = content[at] >> 3 & 15, content[at] >> 2 & 1, content[at] >> 1 & 1
        at += 1 + extended
        size, width = 0, 0
        while sized and at < len(content):
            size, width, at = size | (content[at] & 127) << 7 * width, width + 1, at + 1
            if content[at - 1] < 128:
                break
        told = told or kind == 1
        if kind in (3, 6) and at < len(content):
            return GopType.CLOSED if told and content[at] & 0xF0 == 0x10 else GopType.NONE
        if not sized:
            break
        at += size
    return GopType.NONE


_BY_HEADER = {"mpeg1video": _mpeg2, "mpeg2video": _mpeg2, "mpeg4": _mpeg4, "vp8": _vp8, "vp9": _vp9, "av1": _av1}
