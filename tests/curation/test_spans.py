"""Transitions and times make parts: every frame is in exactly one, and clips keep what the settings promise."""

import numpy as np
import pytest

from sora.curation.spans import SLACK, Part, Span, Transition, parts_of

FREE = {"trim_frames": 0, "least_seconds": 0.0, "most_seconds": None}


def drawn(seed):
    """Times of any rhythm, transitions of any kind, settings."""
    draw = np.random.default_rng(seed)
    frames = int(draw.integers(1, 300))
    gaps = [np.full(frames, 1 / 24), draw.uniform(0.001, 0.2, frames), np.where(draw.random(frames) < 0.03, 3.0, 1 / 30)][seed % 3]
    places = np.sort(draw.integers(0, frames + 1, 2 * int(draw.integers(0, 6))))
    transitions = [Transition(int(one), int(one if draw.random() < 0.5 else two)) for one, two in places.reshape(-1, 2)]
    least = float(draw.choice([0.0, 0.3, 1.0]))
    most = [None, least + float(draw.uniform(0.01, 2.0))][int(draw.random() < 0.7)]
    return gaps.cumsum(), transitions, {"trim_frames": int(draw.integers(0, 4)), "least_seconds": least, "most_seconds": most}


@pytest.mark.parametrize("seed", range(150))
def test_every_frame_is_in_exactly_one_part_and_each_part_is_what_it_says(seed):
    times, transitions, settings = drawn(seed)
    parts = parts_of(times, transitions, **settings)
    frames, trim, most = len(times), settings["trim_frames"], settings["most_seconds"]
    assert [frame for part in parts for frame in range(*part.span)] == list(range(frames))
    edges = np.append(times, times[-1] + (np.median(np.diff(times)) if frames > 1 else 0))
    inside = np.zeros(frames, bool)
    near = np.zeros(frames, bool)
    for first, end in transitions:
        inside[first:end] = True
        near[max(0, first - trim) : end + trim] = True
    for part in parts:
        first, end = part.span
        assert part.seconds == pytest.approx(edges[end] - edges[first])
        assert (inside[first:end] == (part.fate == "transition")).all()
        if part.fate in ("clip", "too long"):
            assert not near[first:end].any()
        if part.fate == "trimmed":
            assert near[first:end].all()
        if part.fate == "clip":
            assert part.seconds >= settings["least_seconds"] - 2 * SLACK and (most is None or part.seconds <= most + 2 * SLACK)
        if part.fate == "too long":
            assert end - first == 1 and part.seconds > most
        if part.fate == "too short":
            untrimmed = Span(first, end)
            assert part.seconds < settings["least_seconds"] or near[list(range(*untrimmed))].all()
    assert sum(part.seconds for part in parts) == pytest.approx(edges[-1] - edges[0])


@pytest.mark.parametrize("seed", range(30))
def test_a_video_played_backwards_has_the_same_parts_backwards(seed):
    """But for where long shots are cut, which rounding decides."""
    times, transitions, settings = drawn(3 * seed)  # of even times, so that the last frame lasts as long as the others
    settings["most_seconds"] = None
    frames = len(times)
    back = [Transition(frames - end, frames - first) for first, end in transitions[::-1]]
    mirrored = [(frames - part.span.end, frames - part.span.first, part.fate) for part in parts_of(times, back, **settings)[::-1]]
    assert mirrored == [(*part.span, part.fate) for part in parts_of(times, transitions, **settings)]


def test_a_long_shot_is_cut_into_the_fewest_equal_parts():
    parts = parts_of(np.arange(241) / 24, [], trim_frames=5, least_seconds=1, most_seconds=4.0)  # 10.04 s
    assert [tuple(part.span) for part in parts] == [(0, 80), (80, 161), (161, 241)]
    exact = parts_of(np.arange(240) / 24, [], trim_frames=0, least_seconds=5, most_seconds=5.0)
    assert [tuple(part.span) for part in exact] == [(0, 120), (120, 240)] and {part.fate for part in exact} == {"clip"}


def test_lengths_are_of_times_and_not_of_frames():
    """The second half of the video has a tenth of the first half's rate."""
    times = np.concatenate([np.arange(50) / 50, 1 + np.arange(10) / 5])
    parts = parts_of(times, [Transition(50, 50)], trim_frames=0, least_seconds=1.5, most_seconds=None)
    assert [part.fate for part in parts] == ["too short", "clip"] and [part.seconds for part in parts] == pytest.approx([1.0, 1.82])


def test_the_ends_of_a_video_are_not_trimmed_and_frames_of_a_transition_are_in_no_clip():
    parts = parts_of(np.arange(40.0), [Transition(10, 10), Transition(20, 26)], **{**FREE, "trim_frames": 2})
    spans = [(0, 8, "clip"), (8, 10, "trimmed"), (10, 12, "trimmed"), (12, 18, "clip"), (18, 20, "trimmed"), (20, 26, "transition")]
    assert [(*part.span, part.fate) for part in parts] == [*spans, (26, 28, "trimmed"), (28, 40, "clip")]


def test_a_fade_from_the_first_frame_and_to_the_last_one():
    parts = parts_of(np.arange(20.0), [Transition(0, 4), Transition(15, 20)], **FREE)
    assert parts == [
        Part(Span(0, 4), "transition", 4.0),
        Part(Span(4, 15), "clip", 11.0),
        Part(Span(15, 20), "transition", 5.0),
    ]


def test_a_frame_that_lasts_longer_than_a_clip_may_is_refused_alone_and_the_rest_is_cut():
    times = np.concatenate([np.arange(10.0), [60.0, 61.0]])
    parts = parts_of(times, [], trim_frames=0, least_seconds=0, most_seconds=5.0)
    assert [(part.span, part.fate) for part in parts if part.fate != "clip"] == [(Span(9, 10), "too long")]


@pytest.mark.parametrize(
    ("transitions", "times"),
    [
        ([Transition(5, 4)], np.arange(9.0)),
        ([Transition(5, 10)], np.arange(9.0)),
        ([Transition(4, 6), Transition(5, 7)], np.arange(9.0)),
        ([Transition(-1, 2)], np.arange(9.0)),
        ([], np.zeros(3)),
        ([], np.array([0.0, np.nan])),
        ([], np.zeros(0)),
    ],
)
def test_what_contradicts_itself_is_refused(transitions, times):
    with pytest.raises(ValueError, match="must be"):
        parts_of(times, transitions, **FREE)


@pytest.mark.parametrize("wrong", [{"trim_frames": -1}, {"least_seconds": float("nan")}, {"least_seconds": 3.0, "most_seconds": 2.0}])
def test_settings_that_no_clip_can_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        parts_of(np.arange(9.0), [], **{**FREE, **wrong})
