"""Hashes and pictures of clips: what leaves them alone, and how mirroring turns them."""

from __future__ import annotations

import numpy as np
import pytest

from sora.curation.duplicates.comparing import mirrored_pictures
from sora.curation.duplicates.signature import GRID, PERIOD, SIDE, Signature, hashed, mirrored
from tests.curation.clips import panned, signature, texture


def pictures(count: int) -> np.ndarray:
    """Grey noise of 16 x 16 places, away from black and white."""
    return np.random.default_rng(0).integers(100, 130, (count, SIDE, SIDE))


def hash_of(lumas: np.ndarray) -> np.ndarray:
    """The hash of each whole picture."""
    frames = np.repeat(np.repeat(np.repeat(lumas[..., None], GRID // SIDE, 1), GRID // SIDE, 2), 3, -1).astype(np.uint8)
    return np.array([hashed(frame)[0][0] for frame in frames])


def test_the_hash_of_a_mirrored_picture_follows_from_the_hash() -> None:
    noise = pictures(200)
    assert (hash_of(noise[..., ::-1]) == mirrored(hash_of(noise))).all()
    assert (mirrored(mirrored(hash_of(noise))) == hash_of(noise)).all()


def test_brightness_and_contrast_leave_a_hash_as_it_is() -> None:
    noise = pictures(200)
    assert (hash_of(3 * noise - 200) == hash_of(noise)).all()


def test_hashes_of_different_pictures_are_far_apart() -> None:
    hashes = hash_of(pictures(300))
    bits = np.bitwise_count(hashes[:, None] ^ hashes)
    assert bits[~np.eye(300, dtype=bool)].min() > 9
    assert 31 < bits[~np.eye(300, dtype=bool)].mean() < 33


def test_a_mirrored_clip_has_the_mirrored_signature() -> None:
    frames = panned(30)
    plain, turned = signature(frames), signature(frames[:, :, ::-1])
    assert np.abs(mirrored_pictures(plain.pictures).astype(int) - turned.pictures).max() <= 1
    assert (mirrored_pictures(mirrored_pictures(plain.pictures)) == plain.pictures).all()
    corners = [0, 1, 3, 2, 5, 4]  # the left ones come to lie on the right
    assert np.bitwise_count(mirrored(plain.hashes)[:, corners] ^ turned.hashes).max() <= 2


@pytest.mark.parametrize(
    ("frames", "fps", "pictures"), [(1, 24, 1), (12, 24, 1), (13, 24, 2), (48, 24, 4), (49, 24, 5), (30, 8, 8), (25, 1, 25)]
)
def test_pictures_are_taken_twice_a_second_or_of_every_frame(frames: int, fps: float, pictures: int) -> None:
    assert PERIOD == 0.5
    assert len(signature(np.repeat(texture(36, 64)[None], frames, 0), fps).pictures) == pictures


def test_bars_are_no_part_of_a_signature() -> None:
    frames = panned(30)
    plain, barred = signature(frames), signature(np.pad(frames, ((0, 0), (24, 24), (0, 0), (0, 0))))
    assert barred.aspect == pytest.approx(plain.aspect, rel=0.02)
    assert np.abs(plain.pictures.astype(int) - barred.pictures).mean() < 3
    assert np.bitwise_count(plain.hashes[:, 0] ^ barred.hashes[:, 0]).max() <= 4


def test_black_and_plain_pictures_say_nothing() -> None:
    grey = np.full((30, 64, 64, 3), 90, np.uint8) + np.random.default_rng(0).integers(0, 5, (30, 64, 64, 3), np.uint8)
    assert not signature(np.zeros((30, 64, 64, 3), np.uint8)).informative.any()
    assert not signature(grey).informative.any()
    assert signature(panned(30)).informative.all()


def test_a_signature_comes_back_from_its_columns() -> None:
    made = signature(panned(30))
    again = Signature.of(*made.columns())
    assert (again.hashes == made.hashes).all()
    assert (again.pictures == made.pictures).all()
    assert again.aspect == made.aspect
    hashes, pictures, aspect = made.columns()
    for wrong in ((hashes[:-1], pictures), (hashes, pictures[:-1]), (b"", b"")):
        with pytest.raises(ValueError, match="compute it anew"):
            Signature.of(*wrong, aspect)
