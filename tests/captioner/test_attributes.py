"""Attributes are what captions and facts say, and a changed caption says something else."""

from dataclasses import asdict

import numpy as np
import pytest

from sora.captioner import NoAttributes, WordAttributes
from sora.world import World, WorldAttributes

WEATHER = WordAttributes(words={"weather": ["sunny", "rainy", "heavy rain"], "light": ["day", "night"]}, facts=True)


def test_words_are_whole_and_the_longest_counts():
    said = [("short", "Heavy rain at night, not on Sundays")]
    assert WEATHER.of(said, {}) == {"weather": ("heavy rain",), "light": ("night",)}
    assert WEATHER.of([("short", "a holiday")], {}) == {}


def test_facts_count_before_captions_and_what_is_unknown_is_left_open():
    said = [("short", "a sunny day")]
    assert WEATHER.of(said, {"weather": "rainy"}) == {"weather": ("rainy",), "light": ("day",)}
    assert WEATHER.of(said, {"weather": ["rainy", "sunny"]})["weather"] == ("sunny", "rainy")
    assert WordAttributes(words={"weather": ["sunny", "rainy"]}, facts=False).of(said, {"weather": "rainy"}) == {"weather": ("sunny",)}


def test_a_changed_caption_differs_in_one_word_and_its_article_follows():
    draws = [np.random.default_rng(seed) for seed in range(40)]
    colours = WordAttributes(words={"colour": ["red", "orange"]}, facts=False)
    assert {colours.changed("A red ball", draw) for draw in draws} == {"An orange ball"}
    assert {colours.changed("Orange and an orange", draw) for draw in draws} == {"Red and an orange", "Orange and a red"}
    assert colours.changed("nothing of the kind", draws[0]) is None and NoAttributes().changed("red", draws[0]) is None


def test_every_changed_caption_of_the_world_says_something_else():
    world, attributes = World(), WorldAttributes(names=None)
    for index in range(60):
        for text in world.scene(index).captions.values():
            other = attributes.changed(text, np.random.default_rng(index))
            assert other is not None and other != text
            if text == world.scene(index).captions["short"]:
                assert attributes.told(other) != attributes.told(text), (text, other)


def test_facts_and_captions_of_the_world_say_the_same():
    world, attributes = World(), WorldAttributes(names=None)
    for index in range(60):
        scene = world.scene(index)
        known = attributes.of([], {"facts": asdict(scene.facts)})
        assert known == attributes.of(list(scene.captions.items()), {})
        assert set(attributes.of([("short", scene.captions["short"])], {})) == {"count", "colour", "shape", "motion", "direction"}
        assert all(value in attributes.values[name] for name, values in known.items() for value in values)


def test_free_text_has_no_attributes_of_the_world():
    assert WorldAttributes(names=None).of([("alt", "my holidays, 2019")], {"facts": None}) == {}


def test_attributes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="attributes.names names smell; the world's are count, colour"):
        WorldAttributes(names=["smell"])
    for words in ({"a.b": ["x", "y"]}, {"a": ["x"]}, {"a": ["x", "x"]}, {"a": ["x", ""]}):
        with pytest.raises(ValueError, match="two or more different words"):
            WordAttributes(words=words, facts=True)
