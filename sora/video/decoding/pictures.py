"""Images as videos: a still is a video of one frame, an animated one (GIF, WebP, AVIF, APNG) a video of constant rate.

Pillow reads them, of an allow-list of formats that the first bytes choose. Frames are upright as EXIF says, in sRGB where a profile says
what they are in, of eight bits a channel; what is transparent shows white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms, ImageOps, features

# Named here, so that a process that is confined later has them.
from PIL import AvifImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401  # isort: skip

from sora.video.demuxing.kinds import HEAD, kind_of
from sora.video.reader import Limits, ReadReport, Source, Timeline, VideoInfo, named, too_large

STILL_RATE = 1.0  # frames a second that a still is said to have: it has no rate, and nothing is read by this one
_SHORTEST, _USUAL = 20, 100  # ms: an animation that asks for less time a frame gets the usual one, as in every browser
_CODEC = "image/"  # of every image's `VideoInfo.codec`, before its format
_ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation at which rows are columns
_PLAIN = ("RGB", "L", "1")
_SEEN_THROUGH = ("RGBA", "LA", "PA", "La", "RGBa")


class OpenedImage(NamedTuple):
    """An opened image. lasting: ms of each frame that is stored, () of a still. info: of the video that it is."""

    image: Image.Image
    lasting: tuple[float, ...]
    info: VideoInfo


Opened = tuple[OpenedImage, None, VideoInfo]  # in the form of `containers.Opened`


def identity() -> str:
    """What the pixels of an image depend on; of a video they do not, so it is no part of a `VideoReader`'s identity."""
    return f"pillow {PIL.__version__}"


def is_picture(source: Source) -> bool:
    """Whether it is an image by its first bytes; a file that cannot be read is none."""
    try:
        return bool(kind_of(_head(source)).picture)
    except OSError:
        return False


def is_still(info: VideoInfo) -> bool:
    """Whether a file that was probed is an image of one frame, and no short video."""
    return info.frames == 1 and info.codec.startswith(_CODEC)


def probe(source: Source, *, name: str | None, timeline: bool, limits: Limits) -> VideoInfo:
    """See `VideoReader`."""
    with opened(source, name, limits) as (picture, _, info), _refused(named(source, name)):
        picture.image.load()  # what cannot be decoded is told as early as of videos, of which a frame is decoded too
    numbers = np.arange(info.frames)
    return replace(info, timeline=Timeline(numbers / info.fps, numbers == 0)) if timeline else info


@contextmanager
def opened(source: Source, name: str | None, limits: Limits) -> Iterator[Opened]:
    """An image within limits, in the form of `containers.opened`."""
    told = named(source, name)
    with ExitStack() as stack:
        with _refused(told):
            file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115 (the stack closes it)
            stack.enter_context(file)
            kind = kind_of(file.read(HEAD)).picture
            file.seek(0)
            if kind == "AVIF" and not features.check("avif"):
                raise ValueError(f"it is an AVIF image, which Pillow {PIL.__version__} does not read; update Pillow to 11.3 or later")
            image = stack.enter_context(Image.open(file, formats=[kind]))
            picture = _within(image, kind, told, limits)
        yield picture, None, picture.info


def shown(picture: OpenedImage, named: str, report: ReadReport) -> Iterator[tuple[float, VideoFrame]]:
    """(time in seconds, frame) of every frame of the video that an image is; what an animation shows for long comes several times."""
    step, first = 1000 / picture.info.fps, _first(picture.image)
    number, until, frame = -1, 0.0, None
    for count in range(picture.info.frames):
        with _refused(named):
            while frame is None or (until <= (count + 0.5) * step and number < len(picture.lasting) - 1):
                number += 1
                if picture.lasting:
                    picture.image.seek(first + number)
                    until += picture.lasting[number]
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(_upright(picture.image)), format="rgb24")
        report.decoded += 1
        yield count / picture.info.fps, frame


@contextmanager
def _refused(named: str) -> Iterator[None]:
    """Whatever a damaged image makes of Pillow, which is nearly anything, becomes a `ValueError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata: limits refuse the first, the second change nothing
            yield
    except PIL.UnidentifiedImageError:  # its own words tell of an object in memory
        raise ValueError(f"{named} does not decode: its header is damaged") from None
    except OSError as error:
        raise ValueError(f"{named} does not decode: {error.strerror or error}") from None
    except Exception as error:
        raise (
            error if str(error).startswith(named) else ValueError(f"{named} does not decode: {str(error) or type(error).__name__}")
        ) from None


def rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Raises ValueError for one that is not known to come out right."""
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # converting would clip all above 255
        values = np.asarray(image).astype(np.float64)
        if mode == "I" and (values.min() < 0 or values.max() > 65535):
            raise ValueError("its grey values do not fit 16 bits")
        return Image.fromarray((values / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif mode in _PLAIN and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in _SEEN_THROUGH:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(below, image).convert("RGB")
    if image.mode not in (*_PLAIN, "CMYK", "YCbCr"):
        raise ValueError(f"its pixels are of mode {mode}, which is not read here; convert it to RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(_in_srgb(ImageOps.exif_transpose(image)))


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB, by the image's profile where it has one that can be used."""
    profile = image.info.get("icc_profile")
    flat = image if profile and image.mode == "CMYK" else rgb(image)
    if not profile:
        return flat
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if not ImageCms.getProfileDescription(given).startswith("sRGB"):
            turned = ImageCms.profileToProfile(flat, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert turned is not None
            return turned
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another colour space than the pixels: left aside, as by every viewer
        pass
    return rgb(flat)


def _within(image: Image.Image, kind: str, told: str, limits: Limits) -> OpenedImage:
    """What an opened image is. Raises ValueError where it asks for more than the limits."""
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE:
        width, height = height, width
    stored = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1)) - _first(image)
    if width * height * 3 > limits.bytes:
        raise too_large(told, limits.bytes)
    lasting: tuple[float, ...] = ()
    if stored > 1:
        _check(told, limits, pixels=width * height, frames=stored)
        lasting = tuple(_durations(image, stored))
    shortest = min(lasting, default=1000 / STILL_RATE)
    frames = max(1, round(sum(lasting) / shortest))
    _check(told, limits, frames=frames, seconds=frames * shortest / 1000, rate=1000 / shortest)
    info = VideoInfo(
        frames=frames,
        fps=1000 / shortest,
        height=height,
        width=width,
        duration=frames * shortest / 1000,
        rotation=0,
        mirrored=False,
        codec=f"{_CODEC}{kind.lower()}",
        pixel_format="rgb24",
        pixel_aspect=1.0,
        colour_matrix="rgb",
        colour_range="full",
    )
    return OpenedImage(image, lasting, info)


def _check(told: str, limits: Limits, **asked: float) -> None:
    for key, value in asked.items():
        if value > getattr(limits, key):
            raise ValueError(f"{told} has {value:g} {key}, the limit is {getattr(limits, key):g} (limits.{key})")


def _durations(image: Image.Image, stored: int) -> Iterator[float]:
    """ms of each frame of an animation, all of which are decoded for it: most formats tell with the frame."""
    for number in range(stored):
        image.seek(_first(image) + number)
        image.load()
        asked = float(image.info.get("duration") or 0)
        yield asked if asked >= _SHORTEST else _USUAL


def _first(image: Image.Image) -> int:
    """The number of an animation's first frame: an APNG may hold a picture before it, for those that show no animations."""
    return int(bool(image.info.get("default_image")))


def _head(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    with open(Path(source), "rb") as file:
        return file.read(HEAD)
