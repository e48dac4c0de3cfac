"""The kind of a file by its first bytes, whatever its name and suffix."""

from __future__ import annotations

from typing import NamedTuple

HEAD = 512  # bytes of a file's beginning that suffice
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf")
_BOM = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class MediaFormat(NamedTuple):
    """A kind of file. what: a name for people. demuxer: FFmpeg's name of a video container. picture: Pillow's name of an image format."""

    what: str
    demuxer: str = ""
    picture: str = ""

    @property
    def read(self) -> bool:
        """Whether files of this kind are read."""
        return bool(self.demuxer or self.picture)


# Allowed picture formats; all others of Pillow are refused, above all EPS, which runs a program.
PICTURES = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
# Suffixes of files that are meant as video or image: such a file of another kind is an error, any other file is not.
VIDEO_SUFFIXES = frozenset(
    (
        "mp4",
        "m4v",
        "mp4v",
        "mov",
        "qt",
        "3gp",
        "3g2",
        "f4v",
        "webm",
        "mkv",
        "avi",
        "ogv",
        "flv",
        "mpg",
        "mpeg",
        "ts",
        "mts",
        "m2ts",
        "wmv",
        "asf",
    )
)
IMAGE_SUFFIXES = frozenset(("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "gif"))
READ_HERE = "videos in mp4, mov, webm, mkv, avi, ogv, flv, mpg or ts, images in jpg, png, webp, avif or gif"
_OTHERS = (
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (b".RMF", "a RealMedia file"),
    (b"YUV4MPEG2", "raw video"),
    (b"DKIF", "an IVF file"),
    (b"\0\0\x01\xb3", "a bare MPEG stream without a container"),
    (b"\0\0\0\x01", "a bare video stream without a container"),
    (b"ID3", "sound"),
    (b"fLaC", "sound"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\0", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "a parquet file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\0\x05\x16\x07", "macOS's notes about another file"),
)


def kind_of(head: bytes) -> MediaFormat:
    """The kind of a file that begins with these bytes; `HEAD` bytes suffice."""
    if not head:
        return MediaFormat("empty")
    return _picture(head) or _video(head) or MediaFormat(_other(head))


def _picture(head: bytes) -> MediaFormat | None:
    if head[:3] == b"\xff\xd8\xff":
        return MediaFormat("a JPEG image", picture="JPEG")
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return MediaFormat("a PNG image", picture="PNG")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return MediaFormat("a WebP image", picture="WEBP")
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return MediaFormat("a GIF image", picture="GIF")
    brands = _brands(head)
    if b"avif" in brands or b"avis" in brands:
        return MediaFormat("an AVIF image", picture="AVIF")
    if brands and brands[0] in _HEIC_BRANDS:
        return MediaFormat("a HEIC image")
    return None


def _brands(head: bytes) -> list[bytes]:
    """The brands of an ISO file, the major one first (ISO/IEC 14496-12, 4.3)."""
    if head[4:8] != b"ftyp":
        return []
    size = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, size - 3, 4))]


def _video(head: bytes) -> MediaFormat | None:
    known: tuple[tuple[bool, str, str], ...] = (
        (head[4:8] in _MP4_BOXES and head[8:12] not in _SOUND_BRANDS, "an MP4 or QuickTime file", "mov"),
        (head[:4] == b"\x1a\x45\xdf\xa3", "a Matroska or WebM file", "matroska"),
        (head[:4] == b"RIFF" and head[8:12] == b"AVI ", "an AVI file", "avi"),
        (head[:4] == b"OggS", "an Ogg file", "ogg"),
        (head[:3] == b"FLV", "a Flash video", "flv"),
        (head[:4] == b"\x00\x00\x01\xba", "an MPEG program stream", "mpeg"),
        (head[:1] == b"\x47" and head[188:189] == b"\x47", "an MPEG transport stream", "mpegts"),
        (
            head[4:5] == b"\x47" and head[196:197] == b"\x47",
            "an MPEG transport stream",
            "mpegts",
        ),  # of camcorders: a time stamp before each packet
    )
    return next((MediaFormat(what, demuxer=demuxer) for fits, what, demuxer in known if fits), None)


def _other(head: bytes) -> str:
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"WAVE") or head[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf1"):
        return "sound"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "zeros"
    return _text(head) or "of no kind that is known"


def _text(head: bytes) -> str:
    """A name for a kind of text; "" for bytes that are no text."""
    if head.startswith(_BOM[1:]):
        return "text in UTF-16"
    try:
        text = head.removeprefix(_BOM[0]).decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not just a character that is cut at the end
            return ""
        text = head[: error.start].decode(errors="ignore")
    if any(letter < " " and letter not in "\t\n\r\f" for letter in text):
        return ""
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html")):
        return "a web page"
    return "a playlist" if start.startswith("#extm3u") else "text"
