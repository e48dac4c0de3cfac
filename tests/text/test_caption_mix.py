"""Which caption is shown, and when none is."""

import pytest

from sora.text.caption_mix import choose_caption, keep_caption

KINDS = [("short", "a"), ("dense", "b"), ("short", "c")]


@pytest.mark.slow
def test_the_share_dropped_is_the_rate_and_changes_with_epoch():
    kept = {(epoch, sample): keep_caption(seed=3, epoch=epoch, sample=sample, rate=0.2) for epoch in (0, 1) for sample in range(4000)}
    assert abs(sum(kept.values()) / len(kept) - 0.8) < 0.015
    again = {key: keep_caption(seed=3, epoch=key[0], sample=key[1], rate=0.2) for key in reversed(kept)}
    assert again == kept  # a function of (seed, epoch, sample), not of the order of calls
    assert sum(kept[0, sample] != kept[1, sample] for sample in range(4000)) > 1000
    assert all(keep_caption(seed=0, epoch=0, sample=sample, rate=0.0) for sample in range(100))
    assert not any(keep_caption(seed=0, epoch=0, sample=sample, rate=1.0) for sample in range(100))


def test_kinds_come_by_their_weights():
    drawn = [choose_caption(KINDS, {"short": 1.0, "dense": 2.0}, seed=0, epoch=0, sample=sample) for sample in range(4000)]
    for text, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        assert abs(drawn.count(text) / 4000 - share) < 0.03
    assert {choose_caption(KINDS, {"dense": 1.0}, seed=0, epoch=0, sample=sample) for sample in range(50)} == {"b"}
    assert len({choose_caption(KINDS, None, seed=0, epoch=0, sample=sample) for sample in range(50)}) == 3


def test_a_clip_without_captions_shows_the_empty_one_and_misspelt_kinds_are_refused():
    assert choose_caption([], {"dense": 1.0}, seed=0, epoch=0, sample=0) == ""
    with pytest.raises(ValueError, match=r"data\.captions=\{'dence': 1\.0\}.*\['dense', 'short'\]"):
        choose_caption(KINDS, {"dence": 1.0}, seed=0, epoch=0, sample=0)
    with pytest.raises(ValueError, match=r"data\.drop=1\.5"):
        keep_caption(seed=0, epoch=0, sample=0, rate=1.5)
