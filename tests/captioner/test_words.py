"""Any text comes back from its ids, and only the words of training are single ids."""

import pytest

from sora.captioner.words import END, SPECIAL, Words, words_of

SAID = [("short", "a red circle moves left"), ("short", "a red square"), ("dense", "A red circle, in front of it. It's well-known.")]


def made(**changes) -> Words:
    return words_of(SAID, **{"kinds": ("short", "dense"), "most": 100, "least": 1, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "  two  spaces\tand\nlines ",
        "ein grünes Quadrat",
        "見える 🎬",
        "\x00\x1b[31m",
        "a" * 999,
        "'' -- <end>",
        "\u202ereversed",
    ],
)
def test_any_text_comes_back(text):
    for words in (made(), made(most=2), Words(kinds=("x",), words=())):
        assert words.decode(words.encode(text)) == text
        assert all(SPECIAL + len(words.kinds) <= number < len(words) for number in words.encode(text))


def test_known_words_are_one_id_each_and_others_are_bytes():
    words = made()
    assert len(words.encode("a red circle moves left")) == 5
    assert len(words.encode("a red cube")) == 2 + len(" cube")


def test_ids_end_at_the_end_and_those_of_no_text_are_passed_over():
    words = made()
    ids = words.encode("a red circle")
    assert words.decode([words.start("dense"), *ids, END, *ids]) == "a red circle"
    assert words.decode([255 + SPECIAL + 2]) == "\ufffd"  # the byte 255 alone is no UTF-8


def test_the_vocabulary_does_not_depend_on_the_order_of_captions_and_comes_back_from_its_file():
    import json

    words = made()
    assert words_of(SAID[::-1], kinds=("short", "dense"), most=100, least=1).words == words.words
    again = Words.from_json(json.loads(words.to_json()))
    assert again.fingerprint == words.fingerprint and again.words == words.words
    assert made(least=2).words == (" red", " circle", ".", "a") and made(most=1).words == (" red",)


def test_what_cannot_be_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="no clip of these datasets has a caption of kind long; their kinds are dense, short"):
        made(kinds=("short", "long"))
    with pytest.raises(ValueError, match="they have no captions"):
        words_of([], kinds=("short",), most=1, least=1)
    with pytest.raises(ValueError, match="kind=long: this captioner writes captions of the kinds short, dense"):
        made().start("long")
    with pytest.raises(ValueError, match="each once"):
        made(kinds=("short", "short"))
