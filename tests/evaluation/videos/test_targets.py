"""What a protocol says of prompts is what they were."""

import pytest

from sora.evaluation.videos.sets import DatasetVideos
from sora.evaluation.videos.targets import plan_targets, prompts_protocol
from sora.patches.geometry import Geometry
from tests.data.loading.test_caption_checks import made

FIT = Geometry((4, 16, 16))


@pytest.mark.parametrize(
    ("kinds", "asked", "said"),
    [
        ([("short",), ("short",)], None, "short"),  # nothing dense to fall back from
        ([("short", "dense"), ("dense",)], None, "dense"),
        ([("short", "dense"), ("dense", "short")], "short", "short"),
        ([("short",), ("dense", "short")], None, "dense, short"),
    ],
)
def test_a_protocol_names_the_kinds_that_the_prompts_are_of(tmp_path, kinds, asked, said):
    videos = DatasetVideos(made(tmp_path / "some", kinds), caption=asked)
    targets, bare = plan_targets(videos, FIT, n=2, split="train", caption=asked, seed=0, uncaptioned="refuse")
    assert bare == []
    assert prompts_protocol(targets)["caption"] == said


def test_clips_without_a_caption_are_refused_by_name_and_left_out_by_a_key_of_its_own(tmp_path):
    videos = DatasetVideos(made(tmp_path / "some", [("short",), (), ("short",), ()]), caption=None)
    asked = {"n": 4, "split": "train", "caption": None, "seed": 0}
    with pytest.raises(ValueError, match=r"2 clips \(clip-\d, clip-\d\) of .* without a caption.*uncaptioned=leave_out"):
        plan_targets(videos, FIT, **asked, uncaptioned="refuse")
    targets, bare = plan_targets(videos, FIT, **asked, uncaptioned="leave_out")
    assert sorted(bare) == ["clip-1", "clip-3"]
    assert sorted(target.prompt for target in targets) == ["short of clip 0"] * 2 + ["short of clip 2"] * 2
    with pytest.raises(ValueError, match="uncaptioned=no: refuse"):
        plan_targets(videos, FIT, **asked, uncaptioned="no")
    none = DatasetVideos(made(tmp_path / "none", [(), ()]), caption=None)
    with pytest.raises(ValueError, match=r"caption the dataset first, put NAME\.txt beside each video of a folder$"):
        plan_targets(none, FIT, **asked, uncaptioned="leave_out")
