"""What a protocol says of prompts is what they were."""

import pytest

from sora.data.taking import Fit
from sora.data.video_sets import DatasetVideos
from sora.evaluation.targets import plan_targets, prompts_protocol
from tests.data.test_captioned import made


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
    targets = plan_targets(videos, Fit(time=4, patch=1, rows=16, columns=16), n=2, split="train", caption=asked, seed=0)
    assert prompts_protocol(targets)["caption"] == said
