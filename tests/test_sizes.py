"""docs/sizes.md holds what is computed."""

import pytest

from experiments import sizes


@pytest.mark.slow
def test_the_page_of_sizes_is_what_is_computed():
    """Two rows of it: the rest is made alike, and takes half a minute."""
    text = sizes.PAGE.read_text()
    for row in (sizes.row("s_2"), sizes.patch_row("s_2")):
        assert row in text, f"{row} is not there; run: python -m experiments.sizes"
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "GiB" in line] == list(sizes.SIZES)


def test_the_names_of_large_sizes_are_their_weights():
    for name in sizes.SIZES[4:]:
        tree = sizes.option(name)
        billions = float(name.removesuffix("b"))
        # a block has 16 D^2: 4 of attention, 4 of attention to the caption, 8 of the MLP; the rest is a few D^2
        assert 16 * tree["width"] ** 2 * tree["depth"] / 1e9 == pytest.approx(billions, rel=0.07), name


@pytest.mark.slow
def test_every_block_keeps_as_much_as_the_next():
    tree, given = sizes.option("toy"), {"patch_channels": 64, "text_width": 24}
    one, two, three = (sizes._kept(sizes.build_at(tree, given, depth)) for depth in (1, 2, 3))
    assert three - two == two - one > 10 * 2 * tree["width"] * sizes.LONG.tokens
