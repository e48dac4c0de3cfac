"""Composed films are what they say: transitions where they are known to be, a pure function of (seed, number)."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from experiments.composed_films import SHARES, SHIPPED, UNLIKE, film
from experiments.cut_scores import Tally
from sora.curation.spans import Transition
from tests.curation.films import joined_shots, shot


@pytest.mark.parametrize("kind", ["hard", "dissolve", "fade", "wipe"])
def test_frames_outside_of_transitions_are_those_of_the_shots(kind):
    made = joined_shots([kind, kind], length=13)
    frames = list(made.frames())
    assert len(frames) == len(made)
    begin = 0
    for place, known in enumerate([*made.known, None]):
        one = made.shots[place]
        lead = 0 if place == 0 or kind == "hard" else len(made.shots[0]) - 40
        lead = lead if kind != "fade" or place == 0 else 13 - 13 // 5 - (13 - 13 // 5) // 2
        end = known.first if known else len(made)
        assert np.array_equal(np.stack(frames[begin:end]), one[lead : lead + end - begin])
        begin = known.end if known else end
    for known in made.known:
        for place in range(known.first, known.end):
            assert not any(np.array_equal(frames[place], frame) for one in made.shots for frame in one)


def test_a_dissolve_is_a_straight_line_and_a_fade_passes_black():
    made = joined_shots(["dissolve", "fade"], length=20)
    frames = [frame.astype(np.float32) for frame in made.frames()]
    dissolve, fade = made.known
    one, two = made.shots[0].astype(np.float32), made.shots[1].astype(np.float32)
    for step in range(20):
        share = (step + 1) / 21
        assert np.abs(frames[dissolve.first + step] - (1 - share) * one[40 + step] - share * two[step]).max() <= 0.51
    black = [frame.max() == 0 for frame in frames]
    assert sum(black) == 4 and all(black[fade.first + 8 : fade.first + 12])


@pytest.mark.parametrize("direction", range(4))
def test_a_wipe_shows_both_shots_unmixed_and_the_second_grows(direction):
    made = joined_shots(["wipe"], length=12, wipe=(direction, 0))
    frames, known = list(made.frames()), made.known[0]
    shares = []
    for step in range(12):
        one, two = made.shots[0][40 + step], made.shots[1][step]
        new = (frames[known.first + step] == two).all(axis=2)
        old = (frames[known.first + step] == one).all(axis=2)
        assert (new | old).mean() > 0.97  # but for the line on which the edge lies
        shares.append(new.mean())
    assert all(before < after for before, after in pairwise(shares)) and shares[0] < 0.12 and shares[-1] > 0.88


@cache
def real(number):
    return film(number, seed=5, transitions=2)


@pytest.mark.slow
def test_a_film_of_shipped_clips_and_the_world_is_a_pure_function_of_its_number():
    again = film(0, seed=5, transitions=2)
    assert again.known == real(0).known and all(np.array_equal(*pair) for pair in zip(again.shots, real(0).shots, strict=True))
    assert film(0, seed=6, transitions=2).known != real(0).known
    frames = [frame.astype(np.float32) for frame in real(0).frames()]
    assert len(frames) == len(real(0)) and {frame.shape for frame in frames} == {(144, 256, 3)}
    assert sum(SHARES.values()) == 1 and UNLIKE > 10 and len(SHIPPED) == 7


@pytest.mark.slow
def test_an_only_cut_is_the_largest_jump_of_a_film():
    made = film(2, seed=5, transitions=1, shares={"hard": 1.0})
    frames = [frame.astype(np.float32) for frame in made.frames()]
    jumps = [np.abs(two - one).mean() for one, two in pairwise(frames)]
    assert not made.decoys and int(np.argmax(jumps)) + 1 == made.known[0].first == made.known[0].end


def test_scores_match_one_to_one_and_count_what_is_left_as_false():
    made = joined_shots(["hard", "dissolve"])  # at 40, and 80 to 96
    every = [Transition(one.first, one.end) for one in made.known]
    tally = Tally()
    tally.add(0, made.known, (), every)
    assert tally.f1("hard") == tally.f1("dissolve") == 1 and tally.exact == 1 and not tally.missed
    for found, hard, gradual, exact in (
        ([Transition(42, 42), Transition(88, 88)], 1, 1, 0),
        ([Transition(43, 43), Transition(88, 88)], 0, 2 / 3, 0),  # too far: missed, and false for both kinds
        ([Transition(40, 40), Transition(84, 84), Transition(92, 92)], 2 / 3, 2 / 3, 1),  # one transition found twice
        ([Transition(30, 100)], 0, 2 / 2, 0),  # one find of both counts once, for the nearer one
    ):
        tally = Tally()
        tally.add(0, made.known, (), found)
        assert (tally.f1("hard"), tally.f1("dissolve"), tally.exact) == (hard, gradual, exact)


def test_shots_of_other_seeds_are_unlike():
    assert np.abs(shot(0, 1).astype(int) - shot(1, 1)).mean() > 15 and np.array_equal(shot(3, 2), shot(3, 2))
