"""Small files of which much is made: thousands of names, kinds, figures and letters, told and drawn within time and memory."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.attacks.harness import assert_bounded, changed
from tests.attacks.test_datasets import listed

MARK = "\u0301"  # an accent that stands above the letter before it
LONG = "w" * 1_000_000
SAID = {
    "many scores": {"scores": {f"s{number}": number for number in range(1500)}},
    "many scores by their names": {f"{number:x}_score": number for number in range(1200)},
    "many kinds": {"captions": [{"kind": f"k{number}", "text": "a"} for number in range(700)]},
    "many captions": {"captions": ["a b c"] * 4000},
    "many captioners": {"captions": [{"kind": "dense", "text": "a", "captioner": f"c{number}"} for number in range(500)]},
    "many keys": {f"text{number}": "x" for number in range(1800)},
    "deep": {"captions": json.loads("[" * 45 + '"a"' + "]" * 45)},
    "deep extra": {"extra": json.loads("[" * 45 + "]" * 45)},
    "deeper": "[" * 9000 + "]" * 9000,
    "numbers without an end": {"scores": {f"s{number}": 10.0 ** (number - 300) for number in range(600)}},
    "whole numbers without an end": {"scores": {"a": 10**4000}, "start": 10**4000},
    "not finite": '{"scores": {"a": 1e999, "b": -1e999}, "start": 1e999}',
    "long caption": {"caption": LONG[:18_000]},
    "words of a letter": {"caption": "a " * 9000},
    "marks upon marks": {"caption": "Z" + "\u0301\u0316" * 4000},
    "letters from right to left": {"caption": "\u202e\u2067\u05d0" * 3000},
    "pictures of families": {"caption": "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 1000},
    "wide letters": {"caption": "\uff21\u3000" * 3000},
    "one letter of many": {"caption": "\ufdfa" * 5000},
    "escapes": {"caption": "\x1b[2J\x1b]0;x\x07" * 1000},
    "dollars": {"caption": "$\\frac{1}{2}$" * 1000},
    "tags": {"caption": "<script>" * 2000},
    "credentials, nearly": {"caption": "hf_" * 6000},
    "addresses, nearly": {"caption": "https://a:" * 1800},
    "equal signs": {"caption": "key=" * 4500},
    "quotes": {"caption": "\\\"'" * 4500},
    "lines": {"caption": "\n" * 9000 + "x"},
    "nothing but nulls": {"caption": "\0" * 3000},
    "long names": {"n" * 9000: "x", "scores": {"s" * 9000: 1}},
    "names that differ by a mark": {f"caption{MARK * number}": "x" for number in range(150)},
    "licence without an end": {"licence": "l" * 18_000, "consent": "c" * 10},
}


@pytest.fixture
def shards(tmp_path, made):
    """A folder with one shard of three clips, whose JSON says this."""
    content = (made / "videos/clip0.mp4").read_bytes()

    def written(said):
        folder = tmp_path / "shards"
        folder.mkdir()
        text = said if isinstance(said, str) else json.dumps(said)
        assert len(text) < 160_000
        with tarfile.open(folder / "00000.tar", "w") as tar:
            for number in range(3):
                for suffix, part in (("mp4", content), ("json", text.encode())):
                    member = tarfile.TarInfo(f"clip{number}.{suffix}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
        return folder

    return written


@pytest.mark.parametrize("what", SAID)
def test_a_small_json_makes_no_command_long(sora, shards, tmp_path, what):
    folder = shards(SAID[what])
    ended = sora("data", "index", str(folder), "workers=1", "max_bad_share=1")
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told
    if ended.code:
        return
    shown = sora("data", "show", str(folder), "workers=1", "clips=1", f"output={tmp_path / 'page.html'}")
    assert_bounded(shown)
    assert shown.code == 0 and len(shown.out) < 60_000, f"{len(shown.out)} letters\n{shown.told}"
    assert (tmp_path / "page.html").stat().st_size < 3_000_000


def test_what_is_not_shown_of_many_scores_is_counted(sora, shards, tmp_path):
    folder = shards(SAID["many scores"])
    assert sora("data", "index", str(folder), "workers=1").code == 0
    ended = sora("data", "show", str(folder), "workers=1", "clips=1", f"output={tmp_path / 'page.html'}")
    assert ended.out.count("score s") == 12, ended.told
    assert "1488 more scores are not shown, such as s1008" in ended.out and "1488 more scores" in (tmp_path / "page.html").read_text()


EXTREME = (float("nan"), float("inf"), -float("inf"), 1.7e308, -1.7e308, 5e-324, 0.0)


def test_scores_of_a_table_that_are_no_measure_are_counted(sora, material, tmp_path):
    """As no JSON could say them: a parquet file holds any number."""
    data = material.copy("data")
    path = data / "meta-000000.parquet"
    table = pq.read_table(path)
    rows = [[("s", EXTREME[row % len(EXTREME)])] for row in range(table.num_rows)]
    column = pa.array(rows, type=table.schema.field("scores").type)
    pq.write_table(table.set_column(table.column_names.index("scores"), "scores", column), path)
    listed(data)
    ended = sora("data", "show", str(data), "workers=1", "clips=1", f"output={tmp_path / 'page.html'}")
    assert_bounded(ended)
    assert ended.code == 0 and "1e+100 and more, or no number" in ended.out, ended.told


FIGURES = {
    "many figures": {f"f{number}{end}": 0.5 for number in range(3000) for end in ("", "_low", "_high")},
    "many shares": {f"adherence_{number}{end}": 0.5 for number in range(3000) for end in ("", "_low", "_high")},
    "long names": {f"{LONG[:9000]}{end}": 0.5 for end in ("", "_low", "_high")},
    "far apart": {f"f{end}": value for end, value in (("", 1e300), ("_low", -1e300), ("_high", 1.7e308), ("_floor", 5e-324))},
    "mathematics": {f"$\\frac{{1}}{{0}}${end}": 0.5 for end in ("", "_low", "_high")},
}


@pytest.mark.parametrize("what", FIGURES)
def test_scores_of_strangers_are_drawn_within_measure(sora, material, tmp_path, what):
    scores = material.copy("scores")
    changed("figures", FIGURES[what])(scores / "scores.json")
    ended = sora("report", str(scores), f"output={tmp_path / 'page.html'}")
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told
