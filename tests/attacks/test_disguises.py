"""Formats that open other files, run programs or claim the world, under the names of videos and pictures: none is read, and soon."""

import io
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from sora.video.demuxing.kinds import kind_of
from sora.video.files import CONFINED, encode

PLAYLISTS = {
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "m3u8 behind an mp4's brand": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/\n",
    "m3u8 behind spaces": b" " * 64 + b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n",
    "m3u8 behind a mark": b"\xef\xbb\xbf#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n",
    "concat": b"ffconcat version 1.0\nfile 'file:/etc/passwd'\n",
    "concat, unsafe": b"ffconcat version 1.0\noption safe 0\nfile subfile,,start,0,end,64,,:/etc/passwd\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
    "smooth streaming": b'<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="http://127.0.0.1:9/"/></SmoothStreamingMedia>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "asx": b'<asx version="3.0"><entry><ref href="http://127.0.0.1:9/x"/></entry></asx>',
    "pls": b"[playlist]\nFile1=http://127.0.0.1:9/x\nNumberOfEntries=1\n",
    "rtsp": b"RTSPtext\nrtsp://127.0.0.1:9/x\n",
    "redirection of asf": b"[Reference]\nRef1=http://127.0.0.1:9/x?MSWMExt=.asf\n",
    "metadata of ffmpeg": b";FFMETADATA1\ntitle=x\n",
    "image list": b"%d.png\n",
    "vob index": b"# VobSub index file, v7\nid: en, index: 0\n",
    "avisynth": b'AVISource("/etc/passwd")\n',
    "vapoursynth": b"import vapoursynth\nopen('/tmp/written', 'w')\n",
    "edl": b"# mplayer EDL file, version 2\n/etc/passwd,0,10\n",
    "lavfi": b"movie=/etc/passwd[out0]\n",
    "webvtt": b"WEBVTT\n\n00:00.000 --> 00:10.000\nhello\n",
    "subrip": b"1\n00:00:00,000 --> 00:00:10,000\nhello\n",
}
PROGRAMS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/written) (w) file closefile\nshowpage\n",
    "eps of dos": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, 40, 0, 0, 0, 0) + b"\xff\xff%!PS-Adobe-3.0 EPSF-3.0\n",
    "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch/F(/bin/sh)>>>>endobj\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script><image href="file:///etc/passwd"/></svg>',
    "svg, packed": zlib.compress(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "mvg": b"push graphic-context\nfill 'url(https://127.0.0.1:9/\"|touch \"/tmp/written)'\npop graphic-context\n",
    "msl": b'<image><read filename="/etc/passwd"/><write filename="/tmp/written"/></image>',
    "html": b"<html><script>1</script></html>",
    "elf": b"\x7fELF\x02\x01\x01" + b"\0" * 200,
    "shell": b"#!/bin/sh\ntouch /tmp/written\n",
    "windows": b"MZ" + b"\0" * 200,
    "java": b"\xca\xfe\xba\xbe" + b"\0" * 200,
    "pickle": b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
    "onnx": b"\x08\x07\x12\x07pytorch" + b"\0" * 100,
    "wasm": b"\0asm\x01\0\0\0",
    "python": b"import os\nos.system('touch /tmp/written')\n",
    "sqlite": b"SQLite format 3\0" + b"\0" * 200,
}


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


PACKED = {
    "zip": zipped("a.png", b"\0" * 10_000_000),
    "torchscript": zipped("archive/code/__torch__.py", b"def forward(self): ..."),
    "npz": zipped("a.npy", b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
    "gzip": zlib.compress(b"\0" * 10_000_000, 9, 31),
    "xz": b"\xfd7zXZ\0" + b"\0" * 100,
    "bzip2": b"BZh91AY&SY" + b"\0" * 100,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\0" * 100,
    "tar": b"a.png".ljust(257, b"\0") + b"ustar\0" + b"\0" * 300,
}
PICTURES = {
    "photoshop": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 300_000, 300_000, 8, 3) + b"\0" * 100,
    "large photoshop": b"8BPS\0\2" + b"\0" * 6 + struct.pack(">HIIHH", 56, 300_000, 300_000, 8, 3) + b"\0" * 100,
    "tiff": b"II*\0\x08\0\0\0\1\0\0\1\3\0\1\0\0\0\xff\xff\0\0\0\0\0\0" + b"\0" * 100,
    "bitmap": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "icon": b"\0\0\1\0\1\0" + b"\0" * 100,
    "icns": b"icns\xff\xff\xff\xff" + b"ic10\xff\xff\xff\xff",
    "cursor": b"\0\0\2\0\1\0" + b"\0" * 100,
    "pcx": b"\x0a\x05\x01\x08" + b"\0" * 124,
    "windows metafile": b"\xd7\xcd\xc6\x9a" + b"\0" * 100,
    "enhanced metafile": b"\1\0\0\0" + b"\0" * 36 + b" EMF" + b"\0" * 100,
    "dds": b"DDS |\0\0\0" + b"\0" * 120,
    "fits": b"SIMPLE  =                    T".ljust(80) + b"NAXIS   = 999999999".ljust(80) + b"END".ljust(80),
    "pixmap": b"P6\n99999999 99999999\n255\n",
    "xpm": b'/* XPM */\nstatic char *x[] = {"99999 99999 1 1", "a c #000"};\n',
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 100,
    "jpeg xl": b"\xff\x0a" + b"\0" * 100,
    "heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100,
    "exr": b"v/1\1\2\0\0\0" + b"\0" * 100,
    "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n",
    "sgi": b"\x01\xda\1\1\0\3\xff\xff\xff\xff\0\3" + b"\0" * 500,
    "targa": b"\0\0\2" + b"\0" * 9 + struct.pack("<HHBB", 65535, 65535, 24, 0),
    "gimp": b"gimp xcf v011\0" + b"\0" * 100,
    "blp": b"BLP2" + b"\0" * 100,
    "flic": b"\0\0\0\0\x12\xaf\xff\xff\xff\xff\xff\xff" + b"\0" * 116,
    "matlab": b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM",
    "webp that ends": b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff",
    "webp of the largest size": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f" + b"\0" * 12,
    "gif that ends": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,",
    "jpeg that ends": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\1\x03\x11\1",
    "jpeg of markers": b"\xff\xd8" + b"\xff\xe1\xff\xff" * 20_000,
}


def box(kind, body=b""):
    return struct.pack(">I", 8 + len(body)) + kind + body


def nested(depth):
    body = b""
    for _ in range(depth):
        body = box(b"moov", body)
    return body


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")


def claims(kind, count):
    """A sound video, one of whose tables is said to have many more entries."""
    whole = bytearray(encode(np.zeros((3, 16, 16, 3), np.uint8), 8.0, lossless=True))
    place = whole.index(kind) + 8
    whole[place : place + 4] = struct.pack(">I", count)
    return bytes(whole)


def elsewhere(kind, body):
    """A sound video whose data are said to lie in another file."""
    whole = encode(np.zeros((3, 16, 16, 3), np.uint8), 8.0, lossless=True)
    found = whole.index(b"url \0\0\0\1")
    return whole[:found] + kind + b"\0\0\0\0" + whole[found + 8 :] + body


CONTAINERS = {
    "boxes in boxes": FTYP + nested(3000),
    "a box of no end": FTYP + b"\0\0\0\1moov\xff\xff\xff\xff\xff\xff\xff\xff",
    "a box of no size": FTYP + b"\0\0\0\0moov" * 1000,
    "many boxes": FTYP + box(b"free") * 200_000,
    "packed movie": FTYP
    + box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", b"\xff\xff\xff\xff" + zlib.compress(b"\0" * 10**7)))),
    "reference movie": FTYP + box(b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", b"\0\0\0\0url \0\0\0\x15http://127.0.0.1:9/x\0")))),
    "matroska that ends": b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    "matroska in matroska": b"\x1aE\xdf\xa3\x80" + b"\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" * 2000,
    "avi that ends": b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl" + b"avih\xff\xff\xff\xff",
    "avi of lists": b"RIFF\xff\xff\xff\xffAVI " + b"LIST\xff\xff\xff\x7fhdrl" * 5000,
    "flash": b"FLV\1\5\0\0\0\x09\0\0\0\0" + b"\x12\xff\xff\xff" * 100,
    "ogg": b"OggS\0\2" + b"\xff" * 20 + b"\xff" + b"\xff" * 255,
    "transport stream": (b"G@\0\x10" + b"\xff" * 184) * 200,
    "mpeg": b"\0\0\1\xba" + b"\xff" * 2000,
}
CLAIMS = {
    f"{kind.decode()} of {count:,} entries": (kind, count)
    for kind in (b"stts", b"stsz", b"stsc", b"stco", b"elst", b"stsd", b"dref")
    for count in (2**31, 2**32 - 1)
}
ALL = {**PLAYLISTS, **PROGRAMS, **PACKED, **PICTURES, **CONTAINERS}


def assert_refused_soon(path):
    began = time.monotonic()
    with pytest.raises(ValueError) as refusal:
        CONFINED.read(str(path), frames=3)
    assert time.monotonic() - began < 30 and path.name in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("what", ALL)
def test_what_only_bears_the_name_of_a_video_or_picture_is_refused(tmp_path, what):
    for suffix in ("mp4", "png") if what not in PICTURES else ("png", "gif"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(ALL[what])
        assert_refused_soon(path)


@pytest.mark.parametrize("what", [*PLAYLISTS, *PROGRAMS, *PACKED])
def test_no_reader_is_chosen_for_it_by_its_first_bytes(what):
    if what == "m3u8 behind an mp4's brand":
        assert kind_of(ALL[what][:512]).demuxer.startswith("mov")  # FFmpeg is told which demuxer to use, and finds no movie there
        return
    assert not kind_of(ALL[what][:512]).read


@pytest.mark.parametrize("what", CLAIMS)
def test_tables_of_a_video_are_believed_as_far_as_the_file_goes(tmp_path, what):
    path = tmp_path / "a.mp4"
    path.write_bytes(claims(*CLAIMS[what]))
    began = time.monotonic()
    try:
        found = CONFINED.read(str(path), frames=3).frames
        assert len(found) <= 3
    except ValueError as error:
        assert "a.mp4" in str(error)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("kind", [b"url ", b"alis", b"rsrc", b"urn "])
def test_a_video_whose_data_lie_in_another_file_opens_none(tmp_path, kind):
    other = tmp_path / "other.mp4"
    other.write_bytes(encode(np.full((3, 16, 16, 3), 200, np.uint8), 8.0, lossless=True))
    path = tmp_path / "a.mp4"
    path.write_bytes(elsewhere(kind, f"file://{other}\0".encode()))
    try:
        found = CONFINED.read(str(path), frames=3).frames
        assert found.max() < 100  # of its own bytes, not of the other file's
    except ValueError as error:
        assert "a.mp4" in str(error)
