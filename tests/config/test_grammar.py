"""A text stands for itself, a list is a list whatever its elements hold, and quotes bring back every text."""

import random

import pytest

from sora.config.command_line.grammar import Leaf, cut, quoted, tree, typed, word

ODD = [
    "2026_11_29", "1e3", "true", "null", "1_0", "0x10", "1:30", "~", "007", "@", "a=b", "#1", "$HOME", "it's", '"', "'", "\\", "a\\",
    "\\'", "",    " ", " a ", "été", "🎈", "a, b", "[x]", "{a: 1}", ":)", "(", "]", "-x", "--mem=0", "'a' and 'b'", "'a'", "C:\\dir\\",
    "a//b", "%", "*", "\n",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_quotes_bring_back_every_text_wherever_it_stands(text):
    assert word(quoted(text)) == tree(quoted(text)) == Leaf(text, True)
    assert tree(f"[a, {quoted(text)}, b]") == [Leaf("a"), Leaf(text, True), Leaf("b")]
    assert tree(f"{{{quoted(text)}: {quoted(text)}}}") == {text: Leaf(text, True)}
    assert cut(f"a,{quoted(text)},b") == ["a", quoted(text), "b"]
    assert word(typed(text)).text == text and (text != "null" or word(typed(text)).quoted)
    assert tree(typed(text)) == word(typed(text))


def test_random_texts_of_what_the_grammar_means_come_back():
    random.seed(0)
    for _ in range(2000):
        texts = ["".join(random.choices("ab ,'\"\\[]{}():", k=random.randint(0, 8))) for _ in range(random.randint(1, 3))]
        assert tree(f"[{','.join(map(quoted, texts))}]") == [Leaf(text, True) for text in texts]
        assert cut(",".join(map(quoted, texts))) == list(map(quoted, texts))


@pytest.mark.parametrize("text", [text for text in ODD if text.strip() == text and text and not set(text) & set(",[]{}(")])
def test_elements_need_no_quotes_for_their_letters(text):
    if text[0] in "'\"":
        return
    assert tree(f"[{text}, a {text}]") == [Leaf(text), Leaf(f"a {text}")]


def test_lists_and_mappings_nest():
    assert tree("[[1, 2], [], {until: 5, sizes: [a b]}]") == [
        [Leaf("1"), Leaf("2")],
        [],
        {"until": Leaf("5"), "sizes": [Leaf("a b")]},
    ]
    assert tree("[v(1)/set, a[1], a cat (black, small)]") == [Leaf("v(1)/set"), Leaf("a[1]"), Leaf("a cat (black, small)")]
    assert tree("{}") == {} and tree(" [ ] ") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a", "nothing closes"),
        ("[a, b", "nothing closes"),
        ("[a :(, b]", "nothing closes"),
        ("['a]", "quote"),
        ("['a'b]", "put the whole element in quotes"),
        ("[a]b", "behind the end"),
        ("[a]]", "behind the end"),
        ("[a,]", "empty"),
        ("[,a]", "empty"),
        ("{a}", "no value"),
        ("{a: }", "empty"),
        ("{a: 1, a: 2}", "twice"),
        ("{[a]: 1}", "no value"),
        ("[{a: 1]", "nothing closes"),
    ],
)
def test_what_is_not_closed_or_not_clear_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        tree(text)


def test_a_sweep_is_cut_outside_quotes_and_brackets():
    assert cut("a, b c ,d") == ["a", "b c", "d"]
    assert cut("'a, b',c") == ["'a, b'", "c"] and cut("'a, b'") == ["'a, b'"]
    assert cut("[a,b],[c]") == ["[a,b]", "[c]"] and cut("{a: 1, b: 2}") == ["{a: 1, b: 2}"]
    assert cut("it's, that's") == ["it's", "that's"] and cut(" a ") == [" a "] and cut("") == [""]
