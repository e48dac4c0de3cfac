"""Images as videos: a still is a video of one frame, an animation (GIF, WebP, AVIF, APNG) a video of constant rate.

Pillow reads them, with a decoder from an allow-list that the first bytes choose. Frames are upright by EXIF, converted to sRGB if the file
has a colour profile, and have eight bits a channel; transparent pixels become white.
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

# Imported here, so that a process that is confined later has them.
from PIL import AvifImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401  # isort: skip

from sora.video.demuxing.kinds import HEAD, kind_of
from sora.video.reader import Limits, ReadReport, Source, Timeline, VideoInfo, named, too_large

STILL_RATE = 1.0  # frames a second that the facts of a still have; reading does not depend on it
_SHORTEST, _USUAL = 20, 100  # ms: an animation with less time per frame gets the usual one, as in every browser
_CODEC = "image/"  # the prefix of an image's `VideoInfo.codec`, before its format
_ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation that swap rows and columns
_PLAIN = ("RGB", "L", "1")
_SEEN_THROUGH = ("RGBA", "LA", "PA", "La", "RGBa")


class OpenedImage(NamedTuple):
    """An opened image. lasting: milliseconds of each stored frame, () for a still. info: the facts of the image as a video."""

    image: Image.Image
    lasting: tuple[float, ...]
    info: VideoInfo


Opened = tuple[OpenedImage, None, VideoInfo]  # in the form of `containers.Opened`


def identity() -> str:
    """The versions that an image's pixels depend on. It is no part of a `VideoReader`'s identity, since videos do not depend on it."""
    return f"pillow {PIL.__version__}"


def is_picture(source: Source) -> bool:
    """Whether the file is an image by its first bytes; False for a file that cannot be read."""
    try:
        return bool(kind_of(_head(source)).picture)
    except OSError:
        return False


def is_still(info: VideoInfo) -> bool:
    """Whether a probed file is a still image rather than a short video."""
    return info.frames == 1 and info.codec.startswith(_CODEC)


def probe(source: Source, *, name: str | None, timeline: bool, limits: Limits) -> VideoInfo:
    """See `VideoReader`."""
    with opened(source, name, limits) as (picture, _, info), _refused(named(source, name)):
        picture.image.load()  # raises for an image that does not decode, as probing a video does
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
    """(time in seconds, frame) of every frame of the image as a video; a frame of an animation that lasts long comes several times."""
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
    """Turn any error of Pillow, which a damaged image can make raise nearly anything, into a `ValueError` with the image's name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which the limits refuse, and of odd metadata, which are harmless
            yield
    except PIL.UnidentifiedImageError:  # Pillow's message names an object in memory
        raise ValueError(f"{named} does not decode: its header is damaged") from None
    except OSError as error:
        raise ValueError(f"{named} does not decode: {error.strerror or error}") from None
    except Exception as error:
        raise (
            error if str(error).startswith(named) else ValueError(f"{named} does not decode: {str(error) or type(error).__name__}")
        ) from None


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB. Raises ValueError for a mode that is not known to convert correctly."""
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # convert() would clip all values above 255
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
    """An RGB image in sRGB, converted by its profile if that can be used."""
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
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one for another colour space, is ignored, as by every viewer
        pass
    return rgb(flat)


def _within(image: Image.Image, kind: str, told: str, limits: Limits) -> OpenedImage:
    """The facts of an opened image. Raises ValueError if it exceeds the limits."""
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
    """Milliseconds of each frame of an animation. This decodes all of them, since most formats store the duration with the frame."""
    for number in range(stored):
        image.seek(_first(image) + number)
        image.load()
        asked = float(image.info.get("duration") or 0)
        yield asked if asked >= _SHORTEST else _USUAL


def _first(image: Image.Image) -> int:
    """The number of an animation's first frame: an APNG may begin with a picture for viewers that show no animations."""
    return int(bool(image.info.get("default_image")))


def _head(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    with open(Path(source), "rb") as file:
        return file.read(HEAD)
