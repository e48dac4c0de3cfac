"""Which clips are duplicates: copies of every kind are, different clips are not, and no order matters."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from sora.curation.duplicates.candidates import close_pairs
from sora.curation.duplicates.comparing import _detail, aligned
from sora.curation.duplicates.grouping import ClipColumns, Duplicates, find_duplicates
from sora.curation.duplicates.signature import MIRROR, Signature
from sora.curation.scores.cheap import cheap_scores
from sora.curation.spans import Span
from sora.video.files import Shown
from sora.world.world import World
from tests.curation.clips import panned, signature, texture


@cache
def scene(seed: int = 0, frames: int = 96) -> np.ndarray:
    """A scene in which the camera moves and something else does, too."""
    made = panned(frames, pixels=1, seed=seed)
    for t in range(frames):
        cv2.circle(made[t], (20 + 2 * t, 70 + round(40 * np.sin(t / 9 + seed))), 22, (40 * seed % 255, 220, 90), -1)
    return made


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def found(signatures: dict[str, Signature], **settings: object) -> Duplicates:
    return find_duplicates(clips(signatures), **settings)  # pyright: ignore[reportArgumentType]


def clips(signatures: dict[str, Signature], **columns: object) -> ClipColumns:
    keys = [*signatures]
    rest = {"digests": keys, "pixels": [100] * len(keys), "sharpness": [1.0] * len(keys)} | columns
    return ClipColumns(keys=keys, signatures=[*signatures.values()], **rest)  # pyright: ignore[reportArgumentType]


def copies() -> dict[str, tuple[np.ndarray, float]]:
    frames = scene()
    rng = np.random.default_rng(0)
    return {
        "noisy": (np.clip(frames + rng.normal(0, 8, frames.shape), 0, 255).astype(np.uint8), 24),
        "half size": (resized(frames, 72, 128), 24),
        "cropped": (frames[:, 6:-6, 10:-10], 24),
        "mirrored": (frames[:, :, ::-1], 24),
        "bars": (np.pad(frames, ((0, 0), (30, 30), (0, 0), (0, 0))), 24),
        "darker": ((frames * 0.7).astype(np.uint8), 24),
        "brighter": ((frames.astype(float) * 0.8 + 45).astype(np.uint8), 24),
        "half rate": (frames[::2], 12),
        "other rate": (frames[np.rint(np.arange(int(96 * 1.25)) / 1.25).astype(int)[:119]], 30),
    }


@pytest.mark.parametrize("kind", [*copies()])
def test_a_copy_is_found_among_others(kind: str) -> None:
    frames, fps = copies()[kind]
    signatures = {f"other {seed}": signature(scene(seed)) for seed in range(1, 5)}
    result = found(signatures | {"a": signature(scene()), "b": signature(frames, fps)})
    assert result.groups == [["a", "b"]]
    (match,) = result.matches
    assert (match.kind, match.mirrored, match.shift) == ("perceptual", kind == "mirrored", 0)


def test_a_copy_that_begins_a_second_later_is_found_with_its_shift() -> None:
    long = scene(2, frames=144)
    result = found({"a": signature(long[:120]), "b": signature(long[24:])})
    assert result.groups == [["a", "b"]]
    assert result.matches[0].shift == 1
    assert found({"b": signature(long[:120]), "a": signature(long[24:])}).matches[0].shift == -1


def test_a_part_of_a_longer_clip_is_found_and_the_longer_one_stays() -> None:
    long = scene(3, frames=192)
    result = found({"a": signature(long[96:144]), "b": signature(long)}, overlap=1.0)
    assert result.groups == [["b", "a"]]
    assert result.matches[0].shift == -2 * 2.0


def test_clips_that_share_less_than_the_overlap_are_two() -> None:
    long = scene(2, frames=192)
    halves = {"a": signature(long[:108]), "b": signature(long[84:])}
    assert found(halves).groups == []
    assert found(halves, overlap=0.2).groups == [["a", "b"]]


def test_equal_bytes_are_always_duplicates_even_black_ones() -> None:
    black = signature(np.zeros((48, 64, 64, 3), np.uint8))
    result = find_duplicates(clips({"a": black, "b": black, "c": black}, digests=["x", "y", "x"]))
    assert result.groups == [["a", "c"]]
    assert [match.kind for match in result.matches] == ["exact"]


def test_black_and_dark_clips_do_not_merge() -> None:
    rng = np.random.default_rng(0)
    dark = {f"dark {index}": signature(rng.integers(0, 6, (48, 64, 64, 3), np.uint8)) for index in range(20)}
    dark |= {f"faint {seed}": signature(scene(seed) // 60) for seed in range(3)}
    assert found(dark | {"black": signature(np.zeros((48, 64, 64, 3), np.uint8))}).groups == []


def test_colour_alone_tells_clips_apart() -> None:
    frames = scene()
    turned = frames[..., [2, 0, 1]]
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])[..., None]
    assert found({"a": signature(frames), "b": signature(turned), "c": signature(np.repeat(grey, 3, -1))}).groups == []


def test_the_same_place_with_other_motion_is_another_clip() -> None:
    forward = scene()
    assert found({"a": signature(forward), "b": signature(forward[::-1])}).groups == []


def test_a_small_object_elsewhere_is_another_clip() -> None:
    def clip(x: int, colour: tuple[int, int, int] = (220, 40, 40)) -> Signature:
        frames = np.repeat(texture(seed=3)[None], 48, 0) // 2 + 60
        for frame in frames:
            cv2.circle(frame, (x, 70), 18, colour, -1)
        return signature(frames.astype(np.uint8))

    assert found({"a": clip(80), "b": clip(130), "c": clip(80, (40, 220, 40))}).groups == []
    assert found({"a": clip(80), "b": clip(81)}).groups == [["a", "b"]]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "part", [np.s_[:-12, 20:], np.s_[12:, :-20], np.s_[6:-6, :-20], np.s_[:-12, 10:-10], np.s_[3:-9, 5:-15], np.s_[:, 8:-12]]
)
def test_a_part_is_found_wherever_it_lies(part: tuple[slice, slice], mirror: bool) -> None:
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in scene()])
    cut = frames[:, *part]
    copy = signature(np.ascontiguousarray(cut[:, :, ::-1] if mirror else cut))
    assert found({"a": signature(frames), "b": copy, "c": signature(scene(1))}).groups == [["a", "b"]]


@pytest.mark.parametrize(("seed", "one", "other"), [(1, 1529, 1603), (3, 1604, 1991), (7, 549, 1640), (8, 88, 1352), (9, 606, 1201)])
def test_little_detail_is_little_evidence(seed: int, one: int, other: int) -> None:
    # Pairs of clips of one thing on a plain ground that once merged: so small, it looks much like another thing, or like a part of it.
    world = World(seed=seed)
    one_clip, other_clip = world.clip(one), world.clip(other)
    assert one_clip.facts != other_clip.facts
    assert found({"a": signature(one_clip.frames, one_clip.fps), "b": signature(other_clip.frames, other_clip.fps)}).groups == []


@pytest.mark.parametrize(("pictures", "detail"), [("bar", 1), ("noise", 8)])
def test_detail_counts_what_pictures_are_made_of(pictures: str, detail: float) -> None:
    luma = np.zeros((4, 16, 16), np.float32)
    luma[:, 5] = 100
    if pictures == "noise":
        luma = np.random.default_rng(0).normal(size=luma.shape).astype(np.float32)
    assert _detail(luma) == pytest.approx(detail, rel=0.1)
    assert _detail(3 * luma + 20) == pytest.approx(_detail(luma), rel=1e-3)
    assert _detail(luma.swapaxes(1, 2)) == pytest.approx(_detail(luma), rel=1e-3)
    assert _detail(np.concatenate([luma, luma])) == pytest.approx(_detail(luma), rel=1e-3)


@pytest.mark.slow
def test_no_order_of_the_input_matters() -> None:
    signatures = {kind: signature(*made) for kind, made in copies().items()} | {f"z{seed}": signature(scene(seed)) for seed in range(4)}
    guard = {"guard": signature(scene(1)[:, :, ::-1])}
    expected = find_duplicates(clips(signatures), against=clips(guard))
    assert expected.groups == [sorted(["z0", *copies()])]
    assert expected.guarded == {"z1": "guard"}
    for seed in range(2):
        keys = np.random.default_rng(seed).permutation([*signatures]).tolist()
        assert find_duplicates(clips({key: signatures[key] for key in keys}), against=clips(guard)) == expected


def test_two_clips_align_whichever_comes_first() -> None:
    one, other = signature(scene()), signature(scene()[12:, :, ::-1])
    there, back = aligned(one, other, mirror=True, overlap=0.5), aligned(other, one, mirror=True, overlap=0.5)
    assert there is not None
    assert back is not None
    assert (there.error, there.shift) == (back.error, -back.shift) == (there.error, 0.5)


def test_what_shows_a_clip_of_the_guarded_set_is_refused_with_its_group() -> None:
    guards = {"e1": signature(scene(1)), "e2": signature(scene(1)), "e3": signature(scene(2))}
    mine = {"a": signature(scene(1)[:, :, ::-1]), "b": signature(scene(5)), "c": signature(scene(1)[24:])}
    result = find_duplicates(clips(mine), against=clips(guards))
    assert result.guarded == {"a": "e1", "c": "e1"}
    assert all(match.guard == (match.other in guards) for match in result.matches)
    assert all(key in mine for group in result.groups for key in group)


def test_an_exact_copy_of_a_guarded_clip_is_refused_even_if_it_is_black() -> None:
    black = signature(np.zeros((48, 64, 64, 3), np.uint8))
    result = find_duplicates(clips({"a": black}, digests=["x"]), against=clips({"a": black}, digests=["x"]))
    assert (result.groups, result.guarded) == ([], {"a": "a"})


def test_the_best_is_the_largest_then_the_longest_then_the_sharpest_then_the_first() -> None:
    one, longer = signature(scene()[:72]), signature(scene())
    keys = {"e": one, "d": one, "c": one, "b": longer, "a": one}
    result = find_duplicates(clips(keys, pixels=[200, 100, 100, 100, 100], sharpness=[1.0, 5.0, 9.0, 1.0, 5.0]))
    assert result.groups == [["e", "b", "c", "a", "d"]]
    assert result.copies == dict.fromkeys("bcad", "e")


def test_many_alike_clips_are_one_group() -> None:
    one = signature(scene())
    assert len(found({f"{index:03d}": one for index in range(30)}).groups[0]) == 30


def test_embeddings_join_clips_that_look_different() -> None:
    signatures = {key: signature(scene(seed)) for seed, key in enumerate("abc")}
    vectors = np.random.default_rng(0).normal(size=(3, 64))
    vectors[2] = vectors[0] + 0.1 * vectors[1]
    given = clips(signatures, embeddings=vectors)
    assert find_duplicates(given).groups == []
    result = find_duplicates(given, similarity=0.95)
    assert result.groups == [["a", "c"]]
    assert result.matches[0].kind == "embedding"
    with pytest.raises(ValueError, match="3 clips came without embeddings"):
        found(signatures, similarity=0.9)


def test_settings_and_columns_that_make_no_sense_are_refused() -> None:
    one = signature(scene())
    with pytest.raises(ValueError, match="overlap=0"):
        found({"a": one}, overlap=0.0)
    with pytest.raises(ValueError, match="1, 2 rows"):
        clips({"a": one}, pixels=[1, 2])
    with pytest.raises(ValueError, match="two clips have the key 'a'"):
        ClipColumns(["a", "a"], ["x", "y"], [one, one], [1, 1], [1.0, 1.0])
    assert found({}).groups == []


def test_close_hashes_are_found_among_random_ones_and_few_others_are() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, (3000, 3), dtype=np.uint64)
    hashes[1::100, 0] = hashes[::100, 0] ^ np.uint64(0b10010001) ^ MIRROR
    pairs = {tuple(row) for row in close_pairs(hashes, np.arange(3000), int(MIRROR), guards=3000).tolist()}
    planted = {(index, index + 1, 1) for index in range(0, 3000, 100)}
    assert planted <= pairs
    assert len(pairs) < 2 * len(planted)


@pytest.mark.slow
def test_clips_of_the_world_with_different_facts_stay_apart() -> None:
    world, signatures, facts = World(), dict[str, Signature](), dict[str, object]()
    for index in range(120):
        clip = world.clip(index)
        frames = [Shown(frame, number / clip.fps, True) for number, frame in enumerate(clip.frames)]
        signatures[clip.key] = next(cheap_scores(frames, [Span(0, len(frames))], fps=clip.fps)).signature
        facts[clip.key] = clip.facts
    result = found(signatures)
    assert all(facts[match.one] == facts[match.other] for match in result.matches)
    again = {f"{key} again": signature for key, signature in signatures.items() if signature.informative.any()}
    groups = found(signatures | again).groups
    assert {tuple(group) for group in groups} == {(key.removesuffix(" again"), key) for key in again}
