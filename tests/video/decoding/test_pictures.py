"""Images as videos: upright, of right colours whatever their mode, an animation by its times, and nothing hostile gets through."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from sora.video.decoding.guarded import GuardedReader
from sora.video.decoding.pictures import is_still
from sora.video.decoding.pyav import PyAVReader
from sora.video.decoding.torchcodec import TorchcodecReader
from sora.video.demuxing.kinds import kind_of
from sora.video.files import LIMITS, PYAV
from tests.data.making import muxed, sound, tar, telling


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """Smooth, and no corner like another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(width) * 4, (np.arange(height) * 6)[:, None], 30
    return pixels


def shown(content: bytes) -> np.ndarray:
    reading = PYAV.read(content, name="it")
    assert reading.report.clean
    assert len(reading.frames) == 1
    return reading.frames[0]


@pytest.mark.parametrize(("kind", "options", "off"), [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 95}, 3)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_still_is_one_frame_upright_as_its_exif_says(kind, options, off, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(ramp()), kind, exif=exif.tobytes(), **options)
    stored = ramp()
    turned = {  # EXIF 2.32, 4.6.4 A: where row 0 and column 0 are shown
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    info = PYAV.probe(content, timeline=True)
    assert (info.frames, info.height, info.width, info.timeline.times.tolist()) == (1, *turned.shape[:2], [0.0])
    assert is_still(info)
    assert np.abs(shown(content).astype(int) - turned).mean() <= off


def test_every_backend_and_process_shows_a_still_alike():
    content = saved(Image.fromarray(ramp()), "JPEG", quality=80)
    alone = PYAV.read(content, size=(16, 24)).frames
    assert np.array_equal(TorchcodecReader(limits=LIMITS).read(content, size=(16, 24)).frames, alone)
    guarded = GuardedReader(reader=PYAV, seconds=60, memory_gb=2, restart_after=10)
    assert np.array_equal(guarded.read(content, size=(16, 24), frames=1).frames, alone)
    assert guarded.probe(content, timeline=True).timeline.times.tolist() == [0.0]
    guarded.close()


def grey16(kind: str) -> bytes:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    return saved(Image.fromarray(values), kind)


def test_sixteen_bits_of_grey_are_scaled_and_not_cut():
    found = shown(grey16("PNG"))[..., 0].astype(int)
    assert np.abs(found - np.linspace(0, 255, 32 * 32).reshape(32, 32)).max() <= 1


def test_what_is_transparent_shows_white_and_what_is_half_so_is_mixed():
    for alpha, wanted in ((0, 255), (128, 127), (255, 0)):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[..., 3] = alpha
        clear = Image.fromarray(pixels)
        for image in (clear, clear.convert("LA")):
            assert np.abs(shown(saved(image, "PNG")).astype(int) - wanted).max() <= 1
    palette = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    palette.putpalette([200, 10, 20] * 256)
    assert (shown(saved(palette, "PNG")) == (200, 10, 20)).all()
    assert (shown(saved(palette, "PNG", transparency=0)) == 255).all()
    assert (shown(saved(Image.new("RGB", (8, 8), (9, 9, 9)), "PNG", transparency=(9, 9, 9))) == 255).all()


def test_other_modes_come_out_in_their_colours():
    assert np.abs(shown(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).astype(int) - (255, 0, 0)).max() < 8
    assert (shown(saved(Image.new("1", (16, 16), 1), "PNG")) == 255).all()
    assert (shown(saved(Image.new("L", (16, 16), 77), "PNG")) == 77).all()


def test_a_profile_that_is_not_srgb_is_applied_and_a_damaged_one_left_aside():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (lab, srgb, b"no profile"):  # the first is of another space than the pixels
        assert (shown(saved(Image.new("RGB", (8, 8), (10, 200, 30)), "PNG", icc_profile=profile)) == (10, 200, 30)).all()
    swapped = bytearray(srgb)

    table = {bytes(swapped[start : start + 4]): start for start in range(132, 132 + 12 * struct.unpack(">I", swapped[128:132])[0], 12)}
    places = [table[b"rXYZ"], table[b"gXYZ"]]
    red, green = (bytes(swapped[place + 4 : place + 12]) for place in places)
    swapped[places[0] + 4 : places[0] + 12], swapped[places[1] + 4 : places[1] + 12] = green, red
    swapped = bytes(swapped).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    found = shown(saved(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG", icc_profile=swapped))
    assert np.abs(found.astype(int) - (0, 255, 0)).max() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG"])
def test_an_animation_shows_each_frame_for_as_long_as_it_says(kind):
    frames = [Image.new("RGB", (32, 32), (8 + 40 * number,) * 3) for number in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=[100, 50, 300, 50], **options)
    info, reading = PYAV.probe(content, timeline=True), PYAV.read(content)
    assert (info.fps, info.frames, len(info.timeline.times)) == (20.0, 10, 10)
    wanted = [8, 8, 48, *[88] * 6, 128]
    assert np.abs(reading.frames.mean((1, 2, 3)) - wanted).max() < 3
    assert reading.report.clean
    some = PYAV.read(content, start=0.1, frames=3, fps=10).frames.mean((1, 2, 3))
    assert np.abs(some - [48, 88, 88]).max() < 3
    assert not is_still(info)


def test_frames_without_a_time_last_a_tenth_of_a_second():
    frames = [Image.new("RGB", (32, 32), (8 + 40 * number,) * 3) for number in range(3)]
    assert PYAV.probe(saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=0)).fps == 10


def test_a_photo_with_a_second_picture_inside_is_one_still():
    content = saved(Image.fromarray(ramp()), "MPO", save_all=True, append_images=[Image.fromarray(ramp()[::-1].copy())])
    assert is_still(PYAV.probe(content))
    assert np.abs(shown(content).astype(int) - ramp()).mean() < 4


def claimed(width: int, height: int) -> bytes:
    """A PNG whose header says that it is as large, and that holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bombs_and_damage_are_refused_by_name():
    with pytest.raises(ValueError, match="it does not decode: .*decompression bomb"):
        PYAV.probe(claimed(30000, 20000), name="it")
    small = PyAVReader(limits=replace(LIMITS, bytes=1000))
    with pytest.raises(ValueError, match="it decodes to more than 1000 bytes"):
        small.read(saved(Image.fromarray(ramp()), "PNG"), name="it")
    few = PyAVReader(limits=replace(LIMITS, frames=2))
    frames = [Image.new("RGB", (8, 8), (number,) * 3) for number in range(3)]
    with pytest.raises(ValueError, match=r"it has 3 frames, the limit is 2 \(limits\.frames\)"):
        few.probe(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), name="it")
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "AVIF"):
        whole = saved(Image.fromarray(telling(1, 48, 64)[0]), kind)
        with pytest.raises(ValueError, match="^it does not decode"):
            PYAV.probe(whole[: len(whole) // 2], name="it")
        with pytest.raises(ValueError, match="^it does not decode"):
            PYAV.read(whole[:20], name="it")


def test_files_are_known_by_their_bytes_and_others_are_called_what_they_are():
    read = {kind: kind_of(saved(Image.fromarray(ramp()), kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "AVIF")}
    assert {kind: (found.picture, found.demuxer) for kind, found in read.items()} == {kind: (kind, "") for kind in read}
    assert kind_of(muxed(telling(2, 32, 32))).demuxer == "mov"
    others = {
        b"": "empty",
        b"%!PS-Adobe-3.0 EPSF-3.0\n": "PostScript",
        saved(Image.fromarray(ramp()), "TIFF"): "a TIFF image",
        saved(Image.fromarray(ramp()), "BMP"): "a BMP image",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "a HEIC image",
        "ein Text, é".encode()[:-1]: "text",
        b"<!DOCTYPE html><html>": "a web page",
        b"#EXTM3U\n/etc/passwd": "a playlist",
        b"\0\0\0\x20ftypM4A \0\0\0\0": "sound",
        tar([("a.txt", b"a")]): "a tar archive",
        bytes(100): "zeros",
        bytes(range(200, 256)): "of no kind that is known",
    }
    assert {content: kind_of(content).what for content in others} == others
    assert not any(kind_of(content).read for content in others)
    with pytest.raises(ValueError, match=r"^it is PostScript by its first bytes; read here are videos in mp4"):
        PYAV.probe(b"%!PS-Adobe-3.0 EPSF-3.0\n", name="it")
    with pytest.raises(ValueError, match="it holds no video stream"):
        PYAV.probe(sound(4000), name="it")
