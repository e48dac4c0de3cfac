"""A kind of captions that is not there is told before a run; single clips without it are counted like any other bad clip."""

import pytest

from sora.data.captioned import require_cached, require_caption, require_kinds
from sora.data.frame_packs import FramePacks, frame_clips
from sora.data.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.planning import Cost, Packed, TokenPlan
from sora.data.quarantine import Quarantine
from sora.data.video import PYAV, encode
from sora.data.video_sets import DatasetVideos
from sora.text import cache
from sora.text.byte import ByteEncoder
from sora.tokens import Grid
from tests.data.making import telling


def made(folder, kinds) -> Index:
    """A clip for each tuple of kinds of captions."""
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=1 << 30) as writer:
        for number, several in enumerate(kinds):
            said = tuple(Caption(kind, f"{kind} of clip {number}", "test") for kind in several)
            facts = ClipFacts(key=f"clip-{number}", frames=1, fps=8.0, height=32, width=32, captions=said)
            writer.write(facts, encode(telling(1, 32, 32, seed=number), 8.0, lossless=True))
        writer.finish({})
    return Index.open(folder)


def test_kinds_that_no_clip_has_are_refused_by_name(tmp_path):
    index = made(tmp_path, [("short",), ("short", "dense"), ()])
    for weights in (None, {"short": 1.0}, {"short": 0.5, "dense": 2}, {"dense": 1.0, "tags": 0.0}):
        require_kinds([index], weights)
    with pytest.raises(ValueError, match=r"names dence, but none of 3 clips.*kinds are dense, short"):
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


def test_a_dataset_without_any_caption_trains_without(tmp_path):
    """There is nothing to choose among, so nothing is spelt wrong; one caption in it, and the same weights are refused."""
    wanted = {"dense": 1.0}
    bare, one = made(tmp_path / "bare", [(), ()]), made(tmp_path / "one", [(), ("short",)])
    assert [bare.captions(row) for row in range(2)] == [(), ()]
    require_kinds([bare], wanted)
    require_caption(bare, 0, wanted)
    with pytest.raises(ValueError, match="names dense, but none of 2 clips"):
        require_kinds([bare, one], wanted)
    require_caption(one, 0, wanted)
    with pytest.raises(ValueError, match="its captions are of kinds short"):
        require_caption(one, 1, wanted)


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
    clips = frame_clips([index], areas=(1024,), rate=None, stride=(4, 4, 4), patch=Grid(1, 1, 1))
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
