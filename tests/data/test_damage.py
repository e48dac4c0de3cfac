"""Damage at random places of every file of a dataset: refused with a `ValueError`, or without any effect; nothing lost unnamed."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from sora.data.index import index as index_module
from sora.data.index import latents
from sora.data.index import mapped_arrays as mapped
from sora.data.index.index import Caption, Index
from sora.data.index.set_writers import CaptionSetWriter
from sora.data.shards.stores import store_of
from sora.ingest.index_shards import index_shards
from sora.ingest.survey import Choices
from tests.data.making import counting, dataset, muxed, tar
from tests.data.sharded import QUICK, samples

VAE = "ab" * 32
STRANGE = [None, -1, 1 << 70, 0.5, "", "../x", "ab" * 32, [], [None], {}, {"a": 1}, True]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset of two shards, with captions that came later and with latents."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    dataset(folder, [(3, 16, 16), (1, 8, 8), (2, 16, 8), (5, 8, 8)], heldout=(1,), max_bytes=9_000)
    index = Index.open(folder)
    assert len(index.described["shards"]) > 1
    writer = CaptionSetWriter(folder, "more", dataset=index.dataset_fingerprint)
    writer.write(0, {"clip-000": (Caption("dense", "x", "y"),)})
    writer.finish({})
    parts = latents.shard_rows(index)
    for number, part in enumerate(parts):
        made = [torch.full((2, 1, 2, 2), float(row)) for row in part]
        latents.write_shard(index, part, lambda _, made=made: made, number=number, vae_hash=VAE, settings={})
    latents.finish(index, shards=len(parts), vae_hash=VAE, about={"stride": [4, 8, 8]})
    return folder


def said(folder) -> list:
    """All that can be asked of a dataset. Clips and latents that are refused are None: training goes on without them."""
    found = []
    for split in (None, "train"):
        index = Index.open(folder, split)
        stored = latents.LatentIndex(index, VAE)
        found += [index.fingerprint, index.captions_fingerprint, list(index.keys), stored.stride, stored.shapes.tolist()]
        found += [array.tolist() for array in (index.frames, index.heights, index.widths, index.fps, index.sizes)]
        for row in range(len(index)):
            found += [index.row(row), index.captions(row), index.shard(row), tried(index.read_member, row), tried(stored.latents, row)]
    return found


def tried(read, row):
    try:
        got = read(row)
    except ValueError:
        return None
    return got if isinstance(got, bytes) else got.tolist()


@pytest.fixture(scope="module")
def wanted(whole):
    found = said(whole)
    assert None not in found
    return found


def places(value, path=()):
    """Every place of a JSON value, as the names that lead there."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, name))
    if path:
        yield path


def changed(told, path, strange):
    copy = json.loads(json.dumps(told))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if strange == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = strange
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dataset.json", f"latents-{VAE[:8]}.json", "captions-more.json"])
def test_strange_values_anywhere_in_a_json_are_refused_or_without_effect(whole, wanted, tmp_path, name):
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    told = json.loads((folder / name).read_text())
    draw, refused = random.Random(name), 0
    for path in places(told):
        for strange in draw.sample(["gone", *STRANGE], 1):
            (folder / name).write_text(json.dumps(changed(told, path, strange)))
            try:
                found = said(folder)
            except ValueError:
                refused += 1
            else:
                odd = [one for one, two in zip(found, wanted, strict=True) if one != two]
                assert all(one is None or isinstance(one, str) for one in odd), (path, strange, odd)  # a fingerprint: a run notices
    assert refused > 4


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        content = content[: draw.randrange(len(content))]
    else:
        for _ in range(draw.choice([1, 1, 4, 40])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_flipped_bits_and_cuts_of_any_file_are_refused_or_without_effect(whole, wanted, tmp_path, monkeypatch, large):
    """large: as of a dataset whose hashes are not compared at its opening, where rows and mapped numbers may lie to each other."""
    if large:
        for module in (index_module, latents, mapped):
            monkeypatch.setattr(module, "_CHECKED_AT_ONCE", 0)
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    draw, noticed = random.Random(0), 0
    for number in range(len(names)):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        name = names[number % len(names)]
        flipped(folder / name, draw)
        try:
            found = said(folder)
        except Exception as error:  # the checks of annotations look at a key, and wrap what that raises
            assert isinstance(error.__cause__ or error, ValueError)
            noticed += 1
            continue
        finally:
            shutil.rmtree(folder)
        odd = [one for one, two in zip(found, wanted, strict=True) if one != two]
        noticed += bool(odd)
        mine = large and name.startswith(("columns/", "latents-"))
        assert mine or name.endswith(".json") or all(one is None for one in odd), (name, odd)
    assert noticed > len(names) / 2


@pytest.mark.slow
def test_damaged_shards_of_others_lose_nothing_unnamed_and_give_no_clip_that_was_not_there(tmp_path):
    media = [muxed(counting(frames), **QUICK) for frames in (1, 2, 3, 1)]
    shard = tar(samples(media))
    settings = {"licence": "", "workers": 0, "seconds": 9, "memory_gb": 64, "about": {}, "max_bad_share": 1.0}
    draw, lost = random.Random(1), 0
    for number in range(16):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.tar").write_bytes(shard)
        flipped(folder / "a.tar", draw)
        before = {path for path in tmp_path.rglob("*") if "." in path.name and folder not in path.parents}
        try:
            index_shards(store_of(str(folder)), ["a.tar"], folder, Choices(), **settings)
        except ValueError as error:
            assert "not one clip can be used" in str(error)
            lost += 1
            continue
        index = Index.open(folder)
        refused = (folder / "refused.jsonl").read_text()
        gone = {f"k{one}" for one in range(4)} - set(index.keys)
        assert not gone or refused
        lost += bool(gone)
        assert [index.row(row).sha256 for row in range(len(index))] and all(index.read_member(row) for row in range(len(index)))
        assert {path for path in tmp_path.rglob("*") if "." in path.name and folder not in path.parents} == before
        shutil.rmtree(folder)
    assert lost > 3
