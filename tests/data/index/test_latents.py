"""Encoding a dataset and packing its latents: what a step holds, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sora.data.index import latents
from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.index.latents import LatentIndex
from sora.data.loading.latents import LatentData
from sora.data.loading.loader import read_clip
from sora.data.plan.clips import ClipLimits
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Packed
from sora.data.plan.plan import TokenPlan
from sora.encode import Part, captions_of, encode_clips
from sora.patches import Patchifier, unpack
from sora.system.draws import sample_id
from sora.text import cache
from sora.text.byte import ByteEncoder
from sora.vae.vae import VideoVAE
from sora.video.files import PYAV, write
from tests.data.making import flip

# An image, a landscape with a tail and an edge to trim, a portrait, a square: (frames, height, width).
SHAPES = [(1, 16, 16), (7, 16, 36), (9, 32, 16), (5, 16, 16), (9, 32, 16), (1, 32, 32)]
HASH = "0123456789abcdef" * 4
TEXT = ByteEncoder(width=8, depth=1, reach=1, max_tokens=32)


def vae() -> VideoVAE:
    torch.manual_seed(0)
    sizes = {"stem": (2, 4, 4), "widths": (8, 8), "blocks": (1, 1), "decoder_blocks": (1, 1), "strides": ((2, 1, 1),)}
    return VideoVAE(latent_channels=4, kernels=((1, 3, 3), (1, 3, 3)), noise=0.1, **sizes).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=60_000) as writer:
        for number, (frames, height, width) in enumerate(SHAPES):
            media = folder / "clip.mp4"
            write(media, draw.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), 8.0, lossless=True)
            captions = (Caption("short", f"clip {number}", "test"), Caption("dense", f"the clip of number {number}", "test"))
            facts = ClipFacts(f"clip-{number}", frames, 8.0, height, width, captions, split="heldout" if number == 5 else "train")
            writer.write(facts, media.read_bytes())
            media.unlink()
        writer.finish({})
    return folder


def encode(folder: Path, *, multiple=(1, 2, 2)) -> int:
    index = Index.open(folder)
    texts = [caption.text for number in range(len(index)) for caption in index.captions(number)]
    cache.extend(folder, TEXT, texts, shard=4)
    return encode_clips(index, vae(), HASH, batch=2, multiple=multiple)


@pytest.fixture
def encoded(dataset, tmp_path) -> Path:
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    encode(folder)
    return folder


def data(folder, **changes) -> LatentData:
    settings = {
        "split": "train",
        "weights": None,
        "captions": None,
        "drop": 0.3,
        "first_frame": 0.0,
        "text_budget": None,
        "max_bad_share": 0.5,
        "cache_mb": 0.01,
        "hash_every_read": False,
    }
    return LatentData(folders=[str(folder)], vae_hash=HASH, text=TEXT, patchifier=Patchifier(size=(1, 2, 2)), seed=5, **settings | changes)


def plan(source, *, packs=2, budget=48, **more) -> TokenPlan:
    settings = {"max_clips": 4, "accumulate": 1, "window": 4, "frames": None, "area": None, "images": None, "drop_long": False}
    fixed = {"filling": Packed(), "cost": Cost(linear=1.0, quadratic=0.01), "curriculum": (), "weights": None, "width": None, "seed": 5}
    return TokenPlan(source.clips, budget=budget, packs=packs, **(settings | fixed | more))


def tokens(source, rows) -> list[int]:
    return source.clips.measured(np.array(rows), ClipLimits()).grids.prod(axis=1).tolist()


def test_latents_are_the_vaes_of_the_trimmed_clip(encoded):
    index = Index.open(encoded)
    stored = LatentIndex(index, HASH)
    assert stored.shapes.tolist() == [[1, 4, 4], [2, 4, 8], [3, 8, 4], [2, 4, 4], [3, 8, 4], [1, 8, 8]]
    assert len(latents.shard_rows(index)) > 1, "the test wants several shards"
    for number, (frames, rows, columns) in enumerate(stored.shapes.tolist()):
        clip = read_clip(index, number, reader=PYAV)[: 1 + (frames - 1) * 4, : rows * 4, : columns * 4]
        expected = vae().encode(torch.from_numpy(clip)[None])[0]
        torch.testing.assert_close(stored.latents(number), expected.half().float(), atol=2e-3, rtol=2e-3)


def test_finished_shards_are_kept_and_others_made_again(encoded, monkeypatch):
    tars = sorted(encoded.glob("latent-*.tar"))
    before = [tar.stat().st_mtime_ns for tar in tars]
    assert encode(encoded) == 1  # the one clip that is trimmed
    assert [tar.stat().st_mtime_ns for tar in tars] == before
    tars[1].with_suffix(".parquet").unlink()
    content = tars[1].read_bytes()
    encode(encoded)
    assert [tar.stat().st_mtime_ns != time for tar, time in zip(tars, before, strict=True)] == [False, True, *[False] * (len(tars) - 2)]
    assert tars[1].read_bytes() == content
    encode(encoded, multiple=(1, 1, 1))
    assert LatentIndex(Index.open(encoded), HASH).shapes[1].tolist() == [2, 4, 9]


def test_parts_of_several_jobs_are_the_whole(encoded, dataset, tmp_path):
    folder = tmp_path / "in parts"
    shutil.copytree(dataset, folder)
    index = Index.open(folder)
    settings = {"batch": 2, "multiple": (1, 2, 2)}
    for number in (2, 0, 1):
        encode_clips(index, vae(), HASH, **settings, part=Part.of([number, 3]))
        with pytest.raises(ValueError, match="sora encode"):
            LatentIndex(index, HASH)
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("latent-*.tar")}
    encode_clips(index, vae(), HASH, **settings)
    assert made == {path.name: path.stat().st_mtime_ns for path in folder.glob("latent-*.tar")} and len(made) > 1
    for path in folder.glob("latent*-*.tar"):
        assert path.read_bytes() == (encoded / path.name).read_bytes()
    texts = [captions_of(index, None, part=Part(number, 3)) for number in range(3)]
    assert set().union(*texts) == captions_of(index, None) and max(map(len, texts)) < len(captions_of(index, None))
    for wrong in ([3, 3], [-1, 2], [1], [0, 1, 2], ["a", 2]):
        with pytest.raises(ValueError, match=r"part=.*must be \[K, N\]"):
            Part.of(wrong)


def test_a_step_holds_the_planned_clips_whatever_was_read_before(encoded):
    source = data(encoded, drop=0.0, captions={"dense": 1.0})
    steps = source.batches(plan(source))
    third = steps[2]
    fresh = pickle.loads(pickle.dumps(data(encoded, drop=0.0, captions={"dense": 1.0}, cache_mb=0))).batches(plan(source))
    for mine, again, planned in zip(third, fresh[2], plan(source).at(2).packs, strict=True):
        torch.testing.assert_close(mine.tokens.patches, again.tokens.patches, atol=0, rtol=0)
        torch.testing.assert_close(mine.text.states, again.text.states, atol=0, rtol=0)
        rows = [item.row for item in planned.items]
        assert mine.sample_ids == tuple(sample_id(source.key(row)) for row in rows)
        assert mine.epochs == tuple(item.epoch for item in planned.items)
        assert mine.tokens.segments.lengths == (
            *tokens(source, rows),
            *[0] * (4 - len(rows)),
            48 - sum(tokens(source, rows)),
        )
        places = mine.text.states.split(list(mine.text.segments.lengths))
        for row, clip, words in zip(rows, unpack(mine.tokens.patches, mine.tokens.grids), places, strict=False):
            expected = source.patchifier.patchify(source.latents[0].latents(row))
            torch.testing.assert_close(clip, expected, atol=0, rtol=0)
            torch.testing.assert_close(words, TEXT.encode([f"the clip of number {source.key(row)[-1]}"])[0], atol=0, rtol=0)
        assert not mine.conditions.any()


@pytest.mark.slow
def test_captions_are_dropped_and_first_frames_given_by_their_shares(encoded):
    source = data(encoded, drop=0.4, first_frame=0.5)
    steps = source.batches(plan(source))
    empty = given = movable = clips = 0
    for step in range(150):
        for batch in steps[step]:
            lengths = batch.text.segments.lengths[: len(batch.tokens.grids)]
            empty, clips = empty + sum(length == 1 for length in lengths), clips + len(lengths)
            for grid, marks in zip(batch.tokens.grids, batch.conditions.split(list(batch.tokens.segments.lengths)), strict=False):
                assert int(marks.sum()) in (0, grid.h * grid.w)
                assert marks.tolist() == sorted(marks.tolist(), reverse=True)
                movable, given = movable + (grid.t > 1), given + bool(marks.any())
                assert grid.t > 1 or not marks.any(), "an image that is all given teaches nothing"
    assert abs(empty / clips - 0.4) < 0.08
    assert abs(given / movable - 0.5) < 0.08


def test_a_limit_on_the_frames_keeps_the_beginning_of_longer_clips(encoded):
    """Which is what the VAE makes of the shorter clip: it is causal."""
    source = data(encoded, drop=0.0)
    steps, seen = source.batches(plan(source, frames=2)), set()
    for step in range(4):
        for batch, planned in zip(steps[step], plan(source, frames=2).at(step).packs, strict=True):
            for clip, grid, item in zip(unpack(batch.tokens.patches, batch.tokens.grids), batch.tokens.grids, planned.items, strict=True):
                latents = source.latents[0].latents(item.row)
                assert grid.t == min(2, latents.shape[1])
                torch.testing.assert_close(clip, source.patchifier.patchify(latents[:, : grid.t]), atol=0, rtol=0)
                if latents.shape[1] > 2:
                    short = read_clip(source.latents[0].index, item.row, reader=PYAV)[: 1 + (grid.t - 1) * 4]
                    expected = vae().encode(torch.from_numpy(short)[None])[0]
                    torch.testing.assert_close(latents[:, : grid.t], expected, atol=2e-3, rtol=2e-3)
                seen.add(item.row)
    assert len(seen) == len(source)


def test_ranks_share_a_step(encoded):
    source = data(encoded)
    steps = source.batches(plan(source))
    whole = [batch.sample_ids for batch in steps[1]]
    assert [batch.sample_ids for rank in range(2) for batch in steps.share(1, ranks=2, rank=rank)] == whole


def test_a_flipped_byte_is_quarantined_and_another_clip_stands_in(encoded):
    source = data(encoded)
    bad = [source.key(row) for row in range(len(source))].index("clip-2")  # clip-4 has as many tokens
    member = source.latents[0].member(bad)
    with open(encoded / member.shard, "r+b") as file:
        file.seek(member.offset + member.size - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    steps = data(encoded).batches(plan(source))
    seen = {sample for step in range(3) for batch in steps[step] for sample in batch.sample_ids}
    assert sample_id("clip-2") not in seen
    assert sample_id("clip-4") in seen
    assert steps.quarantine.keys() == {"clip-2"}
    with pytest.raises(ValueError, match=r"data\.max_bad_share"):
        strict = data(encoded, max_bad_share=0.0).batches(plan(source))
        [strict[step] for step in range(3)]


def test_stale_and_missing_latents_are_refused_by_name(encoded):
    with pytest.raises(ValueError, match=r"no finished latents of the VAE ffffffff.*01234567.*sora encode"):
        LatentIndex(Index.open(encoded), "f" * 64)
    with pytest.raises(ValueError, match="its vae is"):
        LatentIndex(Index.open(encoded), HASH[:8] + "f" * 56)
    with pytest.raises(ValueError, match="no captions encoded by this text encoder"):
        data_of_another = ByteEncoder(width=8, depth=1, reach=1, max_tokens=31)
        LatentData(
            folders=[str(encoded)],
            split="train",
            weights=None,
            captions=None,
            drop=0.0,
            first_frame=0.0,
            text_budget=None,
            max_bad_share=0.0,
            cache_mb=0.0,
            hash_every_read=False,
            vae_hash=HASH,
            text=data_of_another,
            patchifier=Patchifier(size=(1, 2, 2)),
            seed=0,
        )
    tar = sorted(encoded.glob("latent-*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ValueError, match=f"{tar.name} is missing or cut short"):
        LatentIndex(Index.open(encoded), HASH)


def test_patches_that_do_not_fit_are_found_before_training(encoded):
    encode(encoded, multiple=(1, 1, 1))
    with pytest.raises(ValueError, match=r"clip clip-1 of .*2x4x9 do not divide into patches of 1x2x2"):
        _ = data(encoded).clips


def test_a_clip_smaller_than_a_patch_is_named(dataset):
    with pytest.raises(ValueError, match=r"clip clip-0 of 1x16x16.*encode\.multiple"):
        encode_clips(Index.open(dataset), vae(), "e" * 64, batch=2, multiple=(2, 2, 2))


def test_captions_of_a_kind_are_those_and_the_empty_one(dataset):
    index = Index.open(dataset)
    every = [caption for row in range(len(index)) for caption in index.captions(row)]
    kinds = {caption.kind for caption in every}
    assert captions_of(index, None) == {"", *(caption.text for caption in every)}
    for kind in kinds:
        assert captions_of(index, [kind]) == {"", *(caption.text for caption in every if caption.kind == kind)}
    with pytest.raises(ValueError, match="has kind nonsense, only"):
        captions_of(index, [*kinds, "nonsense"])


class Other:
    """A reader of another name, whose frames are those of PyAV."""

    read, probe = PYAV.read, PYAV.probe

    def identity(self) -> str:
        return "other 2.0 swscale 9"


def test_latents_of_another_reader_are_stale_and_both_are_named(encoded):
    index = Index.open(encoded)
    before = {path.name: path.read_bytes() for path in encoded.glob("latent*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"latent-01234567-000000\.parquet is stale.*{PYAV.identity()}.*other 2\.0 swscale 9"):
        encode_clips(index, vae(), HASH, batch=2, multiple=(1, 2, 2), reader=Other())
    assert {path.name: path.read_bytes() for path in encoded.glob("latent*") if path.is_file()} == before
    assert PYAV.identity() in data(encoded).depends["latents"]
    first, *others = sorted(encoded.glob("latent-*.parquet"))
    first.unlink()
    with pytest.raises(ValueError, match=f"{others[0].name} is stale"):  # before anything is encoded: a mixture is not begun
        encode_clips(index, vae(), HASH, batch=2, multiple=(1, 2, 2), reader=Other())
    assert not first.exists()
    for meta in others:
        meta.unlink()
    encode_clips(index, vae(), HASH, batch=2, multiple=(1, 2, 2), reader=Other())
    assert "other 2.0 swscale 9" in data(encoded).depends["latents"]


def test_latents_that_are_made_again_are_not_whole_until_the_last(encoded, monkeypatch):
    """With the manifest of before and some new shards, a run would train on a mixture."""
    sorted(encoded.glob("latent-*.parquet"))[1].unlink()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(latents, "_arrays", stopped)
        with pytest.raises(KeyboardInterrupt):
            encode(encoded)
    with pytest.raises(ValueError, match="no finished latents"):
        LatentIndex(Index.open(encoded), HASH)
    encode(encoded)
    assert len(LatentIndex(Index.open(encoded), HASH)) == 6


def test_places_and_shapes_are_mapped_and_are_those_of_the_rows(encoded, monkeypatch):
    """60 bytes a clip in files; in memory nothing for the whole dataset."""
    for split in (None, "train", "heldout"):
        mapped = LatentIndex(Index.open(encoded, split), HASH)
        held = LatentIndex(Index.open(encoded, split), HASH)
        monkeypatch.setattr(latents, "_open_columns", lambda *_: None)
        made = LatentIndex(Index.open(encoded, split), HASH)
        monkeypatch.undo()
        assert [mapped.member(n) for n in range(len(mapped))] == [made.member(n) for n in range(len(mapped))]
        assert mapped.shapes.tolist() == made.shapes.tolist()
        assert pickle.loads(pickle.dumps(held)).shapes.tolist() == made.shapes.tolist()
    whole = LatentIndex(Index.open(encoded), HASH)
    for array in (whole.shapes, *whole._whole.values()):
        base = array
        while not isinstance(base, np.memmap):
            base = base.base
            assert base is not None, "copied into memory"
    assert sum(path.stat().st_size for path in (encoded / f"latents-{HASH[:8]}").iterdir()) == 60 * 6


def test_mapped_places_that_changed_are_refused_and_may_be_missing(encoded):
    folder = encoded / f"latents-{HASH[:8]}"
    flip(folder / "offset.bin", 9)
    with pytest.raises(ValueError, match=r"offset\.bin has changed.*delete the folder"):
        LatentIndex(Index.open(encoded), HASH)
    shutil.rmtree(folder)
    assert LatentIndex(Index.open(encoded), HASH).latents(1).shape == (4, 2, 4, 8)


def test_a_manifest_that_lists_other_files_is_refused(encoded):
    path = latents.manifest_path(encoded, HASH)
    told = json.loads(path.read_text())
    strange = [
        {"shards": told["shards"][:-1]},
        {"shards": [7] * len(told["shards"])},
        {"stride": "abc"},
        {"stride": [4, 8]},
        {"columns": 5},
    ]
    strange += [{"shards": [{**told["shards"][0], "shard": "../x.tar"}, *told["shards"][1:]]}]
    for change in strange:
        path.write_text(json.dumps({**told, **change}))
        with pytest.raises(ValueError, match=rf"{path.name} (lists|is damaged)"):
            LatentIndex(Index.open(encoded), HASH)


def test_a_batch_of_clips_gives_the_latents_of_each_alone(encoded):
    """Clips 2 and 4, and 0 alone in its shape, whatever the batch is."""
    shapes = [LatentIndex(Index.open(encoded), HASH).latents(row) for row in range(6)]
    for path in encoded.glob("latent-*.parquet"):
        path.unlink()
    encode_clips(Index.open(encoded), vae(), HASH, batch=1, multiple=(1, 2, 2))
    for row, before in enumerate(shapes):
        torch.testing.assert_close(LatentIndex(Index.open(encoded), HASH).latents(row), before, atol=2e-3, rtol=2e-3)


def test_a_clip_known_to_be_bad_is_not_tried_again(encoded, monkeypatch):
    source = data(encoded, cache_mb=0.0)
    tried, plain = [], LatentIndex.latents

    def counted(self, number):
        tried.append(source.key(number))
        if source.key(number) == "clip-2":
            raise ValueError("spoilt")
        return plain(self, number)

    monkeypatch.setattr(LatentIndex, "latents", counted)
    steps = source.batches(plan(source))
    seen = [sample for step in range(12) for batch in steps[step] for sample in batch.sample_ids]
    assert seen.count(sample_id("clip-4")) > 3 and tried.count("clip-4") > 3, "several epochs, in each of which clip 4 stands in"
    assert tried.count("clip-2") == 1 and sample_id("clip-2") not in seen
