"""A kind of captions that is not there is told before a run; single clips without it are counted like any other bad clip."""

import json

import pytest

from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.index.set_writers import CaptionSetWriter
from sora.data.loading.caption_checks import captioned, require_cached, require_caption, require_kinds, texts_told
from sora.data.loading.frames import FramePacks, frame_clips
from sora.data.loading.quarantine import Quarantine
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Packed
from sora.data.plan.plan import TokenPlan
from sora.evaluation.videos.sets import DatasetVideos
from sora.ingest.check import check
from sora.patches.geometry import Geometry
from sora.text import cache
from sora.text.byte import ByteEncoder
from sora.video.files import PYAV, encode
from tests.data.making import telling


def made(folder, kinds, heldout=()) -> Index:
    """A clip for each tuple of kinds of captions."""
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=1 << 30) as writer:
        for number, several in enumerate(kinds):
            split = "heldout" if number in heldout else "train"
            said = tuple(Caption(kind, f"{kind} of clip {number}", "test") for kind in several)
            facts = ClipFacts(key=f"clip-{number}", frames=1, fps=8.0, height=32, width=32, captions=said, split=split)
            writer.write(facts, encode(telling(1, 32, 32, seed=number), 8.0, lossless=True))
        writer.finish({})
    return Index.open(folder)


def test_kinds_that_no_clip_has_are_refused_by_name(tmp_path):
    index = made(tmp_path, [("short",), ("short", "dense"), ()])
    for weights in (None, {"short": 1.0}, {"short": 0.5, "dense": 2}, {"dense": 1.0, "tags": 0.0}):
        require_kinds([index], weights)
    with pytest.raises(ValueError, match=r"names dence, but none of the 3 clips.*kinds are dense, short"):
        require_kinds([index], {"dence": 1.0, "short": 1.0})
    for weights in ({}, {"short": 0.0}, {"short": -1.0, "dense": 2.0}):
        with pytest.raises(ValueError, match=r"data\.captions=.*above 0"):
            require_kinds([index], weights)


def test_prompts_are_of_the_kind_that_is_asked_for_and_never_of_another(tmp_path):
    index = made(tmp_path / "some", [("short",), ("short", "dense"), (), ("tags", "short", "dense")])

    def said(caption):
        videos = DatasetVideos(index, caption=caption)
        return [videos.prompt(number) for number in range(len(index))]

    assert said("dense") == [None, "dense of clip 1", None, "dense of clip 3"]
    assert said("tags") == [None, None, None, "tags of clip 3"]
    assert said(None) == ["short of clip 0", "dense of clip 1", None, "dense of clip 3"]  # the fullest that a clip has
    kinds = [DatasetVideos(index, caption=None).prompt_kind(number) for number in range(len(index))]
    assert kinds == ["short", "dense", "none", "dense"]
    for wrong in ("dence", "", "Dense"):
        with pytest.raises(ValueError, match=rf"caption={wrong}: no clip of .*some has such a caption; their kinds are dense, short, tags"):
            DatasetVideos(index, caption=wrong)
    bare = made(tmp_path / "bare", [(), ()])
    assert DatasetVideos(bare, caption=None).prompt(0) is None
    with pytest.raises(ValueError, match=r"caption=dense: .*they have no captions at all"):
        DatasetVideos(bare, caption="dense")


def test_weights_of_kinds_that_no_clip_has_are_refused_also_where_there_are_no_captions_at_all(tmp_path):
    """A bare dataset beside one with captions lacks no kind: its clips are shown without, which is told."""
    wanted = {"dense": 1.0}
    bare, one, dense = (made(tmp_path / name, kinds) for name, kinds in (("a", [(), ()]), ("b", [(), ("short",)]), ("c", [("dense",)])))
    assert [bare.captions(row) for row in range(2)] == [(), ()]
    with pytest.raises(
        ValueError, match=r"names dense, but none of the 2 clips of .*a has .*no captions at all; data\.captions=null trains"
    ):
        require_kinds([bare], wanted)
    require_kinds([bare], None)
    require_kinds([bare, dense], wanted)
    require_caption(bare, 0, wanted)
    with pytest.raises(ValueError, match=r"names dense, but none of the 2 clips of .*b has .*their kinds are short"):
        require_kinds([dense, one], wanted)
    require_caption(one, 0, wanted)
    with pytest.raises(ValueError, match="its captions are of kinds short"):
        require_caption(one, 1, wanted)


@pytest.mark.parametrize("before", [False, True])
def test_how_many_clips_have_which_captions_is_counted_by_split(tmp_path, before):
    """As dataset.json says; and the same of a dataset of before, which did not say, by looking."""
    index = made(tmp_path, [("short",), ("short", "dense"), (), ("short", "short")], heldout=(1, 2))
    if before:
        described = json.loads((tmp_path / "dataset.json").read_text())
        assert described.pop("captioned")
        (tmp_path / "dataset.json").write_text(json.dumps(described))
    found = captioned([Index.open(tmp_path)])
    assert (found.clips, found.looked, found.without, dict(found.kinds)) == (4, 4, 1, {"short": 3, "dense": 1})
    held = captioned([Index.open(tmp_path, "heldout"), index])
    assert (held.clips, held.without, dict(held.kinds)) == (6, 2, {"short": 4, "dense": 2})
    assert captioned([Index.open(tmp_path, "train")]).lines(None) == []
    assert found.lines({"dense": 1.0}) == [
        "1 of 4 clips has no caption (25%): it is shown without",
        "captions by kind: dense 1, short 3; data.captions shows dense",
    ]
    writer = CaptionSetWriter(tmp_path, "more", dataset=index.dataset_fingerprint)
    writer.write(0, {"clip-2": [Caption("dense", "said later", "m")]})
    writer.finish({})
    later = captioned([Index.open(tmp_path)])
    assert (later.without, dict(later.kinds)) == (0, {"short": 3, "dense": 2})


def test_a_count_of_captions_that_is_not_the_rows_own_is_a_fault(tmp_path):
    made(tmp_path, [("short",), ()])
    assert not check(Index.open(tmp_path), decode=0, workers=0, seconds=9, memory_gb=64).faults
    described = json.loads((tmp_path / "dataset.json").read_text())
    described["captioned"]["train"]["without"] = 0
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (fault,) = check(Index.open(tmp_path), decode=0, workers=0, seconds=9, memory_gb=64).faults
    assert "clips with and without captions" in fault.reason


def test_captions_that_are_cut_are_told_by_the_cache_or_by_looking(tmp_path):
    index = made(tmp_path, [("short",), ("dense", "short"), ()])
    text = ByteEncoder(width=8, depth=1, reach=1, max_tokens=1 + len("dense of clip"))
    told = "1 of 4 captions is longer than text.max_tokens=14 and cut there; of 'dense of clip 1' is lost: ' 1'"
    said = [caption.text for row in range(3) for caption in index.captions(row)]
    assert said == ["short of clip 0", "dense of clip 1", "short of clip 1"]
    loose = {"encoder": text, "fill": 0}
    assert texts_told([index], {"dense": 1.0}, **loose, caches=None)[-1] == told.replace("1 of 4", "1 of 1")
    cache.extend(tmp_path, text, said[1:2], shard=1)
    states = cache.TextCache(tmp_path, text.fingerprint)
    told = told.replace("of 4", "of 2")  # with the empty one
    assert texts_told([index], {"dense": 1.0}, **loose, caches=[states])[-1] == told
    assert texts_told([index], {"dense": 1.0}, encoder=text, fill=8, caches=[states])[-1].startswith(
        "1 of 1 captions is longer than dit.text.fill=8 and cut there; of 'dense of clip 1' is lost: 'f clip 1'"
    )
    notes = check(Index.open(tmp_path), decode=0, workers=0, seconds=9, memory_gb=64).lines()
    assert any(line.endswith(f"{told}") for line in notes) and any("1 of 3 clips has no caption" in line for line in notes)


def test_captions_that_were_not_encoded_are_told_before_the_run(tmp_path):
    index, text = made(tmp_path, [("short", "dense")] * 3), ByteEncoder(width=8, depth=1, reach=1, max_tokens=64)
    cache.extend(tmp_path, text, [said.text for row in range(3) for said in index.captions(row) if said.kind == "short"], shard=8)
    texts = cache.TextCache(tmp_path, text.fingerprint)
    require_cached(index, texts, {"short": 1.0})
    for weights in (None, {"dense": 1.0}):
        with pytest.raises(ValueError, match=r"kind dense.*not encoded.*sora encode"):
            require_cached(index, texts, weights)


def test_a_clip_without_a_wanted_caption_is_named_and_replaced(tmp_path):
    index = made(tmp_path, [("short",)] * 4 + [("dense",)] + [("short",)] * 4)
    clips = frame_clips([index], areas=(1024,), rate=None, geometry=Geometry((4, 4, 4)))
    plan = TokenPlan(
        clips, filling=Packed(), cost=Cost(linear=1.0, quadratic=0.0), budget=192, max_clips=8, packs=1, accumulate=1, window=3,
        frames=None, area=None, images=None, drop_long=False, curriculum=(), weights=None, width=None, seed=0,
    )  # fmt: skip
    quarantine = Quarantine(None, clips=len(index), max_share=0.2)
    wanted = {"short": 1.0}
    data = FramePacks([index], plan, quarantine=quarantine, reader=PYAV, require=lambda _, row: require_caption(index, row, wanted))
    shown = [clip.key for step in range(6) for pack in data[step] for clip in pack]
    assert "clip-4" not in shown and len(shown) == 18
    assert quarantine.keys() == {"clip-4"}
