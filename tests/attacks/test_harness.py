"""The harness itself: what it must see, and what it must end."""

from tests.attacks.harness import assert_bounded, assert_refused


def test_a_command_that_works_ends_with_nothing(sora, material):
    run = material.copy("dit")
    ended = sora("sample", f"checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", f"output={run.parent / 'out'}")
    assert_bounded(ended)
    assert ended.code == 0, ended.told
    assert ended.peak_mb > 0.8 * sora.baseline_mb


def test_what_is_typed_wrong_is_refused(sora):
    ended = sora("sample", "checkpoint=nowhere", "prompt=x")
    assert_refused(ended, "nowhere")
    assert ended.seconds < 10
