"""A prompt is the text that was given, whatever file it stands in; numbers are checked by key, and mistakes told by the file's lines."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.gate.sizes import refuse_numbers
from sora.generation.generator import Request
from sora.generation.prompts import NUMBERS, Line, negative_of, read_file, read_prompts, refuse_idle, refuse_unguided, with_cuts
from sora.text.byte import ByteEncoder


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "text", ["a red circle\u2028moving left", "a\x0bb", "a\x85b", "1e3", "007", "{a: b}", "null", "true", "a, b", '"x"', "a\rb"]
)
def test_a_prompt_is_the_text_that_was_given(tmp_path, text):
    """In every kind of file: none of its letters ends it, and none of its spellings makes it a number."""
    quoted = text.replace('"', '""')
    files = {
        "p.txt": f"{text}\r\nb\n",
        "p.jsonl": f"{json.dumps({'prompt': text}, ensure_ascii=False)}\n\n{json.dumps({'prompt': 'b'})}",
        "p.json": json.dumps([text, {"prompt": "b"}]),
        "p.csv": f'prompt\n"{quoted}"\nb\n',
        "p.TSV": f'prompt\tseed\n"{quoted}"\t\nb\t\n',
        "p.TXT": f"\ufeff{text}\nb",
    }
    for name, content in files.items():
        assert read_file(written(tmp_path / name, content)) == [Line(text), Line("b")], name
    pq.write_table(pa.table({"prompt": [text, "b"], "seed": [None, None]}), tmp_path / "p.parquet")
    assert read_file(tmp_path / "p.parquet") == [Line(text), Line("b")]


def test_what_a_line_sets_is_the_same_from_every_kind_of_file(tmp_path):
    row = {"prompt": "x", "negative": "n", "size": "4:3", "seconds": 1.5, "fps": 8, "seed": 9}
    wanted = [Line("x", size="4:3", seconds=1.5, fps=8.0, seed=9, negative="n")]
    assert read_file(written(tmp_path / "p.JSONL", json.dumps(row))) == wanted
    assert read_file(written(tmp_path / "p.csv", f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")) == wanted
    assert read_file(written(tmp_path / "q.csv", "prompt,seed,fps,negative\nx,, ,\n")) == [Line("x")]
    assert read_prompts(["zero"], tmp_path / "p.csv") == [Line("zero"), *wanted]
    assert read_file(written(tmp_path / "q.jsonl", '{"prompt": "x", "seed": null, "negative": ""}')) == [Line("x", negative="")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"prompt": "y", "sized": 3}', "it has 'sized'; a line may have prompt, negative, size"),
        ('{"size": "1:1"}', "it has no prompt"),
        ('{"prompt": null}', "it has no prompt"),
        ('{"prompt": ["a", "b"]}', r"prompt=\['a', 'b'\] is no text"),
        ('{"prompt": 3}', "prompt=3 is no text"),
        ('{"prompt": "a", "negative": 3}', "negative=3 is no text"),
        ('{"prompt": "a", "seconds": "2"}', "seconds='2' is no number; write it without quotes"),
        ('{"prompt": "a", "fps": "eight"}', "fps='eight' is no number"),
        ('{"prompt": "a", "seed": 1.5}', r"seed=1\.5 is no whole number"),
        ('{"prompt": "a", "seed": true}', "seed=True is no number"),
        ('{"prompt": "a", "fps": 0}', "fps=0 is out of range: give a number above 0"),
        ('{"prompt": "a", "seconds": -1}', "seconds=-1 is out of range: give a number of at least 0"),
        ('{"prompt": "a", "seconds": NaN}', "seconds=nan is out of range"),
        ('{"prompt": "a", "fps": 1e999}', "fps=inf is out of range"),
        ('{"prompt": "a", "size": "wide"}', "size='wide' is neither an aspect ratio"),
        ('{"prompt": "a", "size": [16, 16]}', r"size=\[16, 16\] is no text"),
        ('{"prompt": "a dog \\ud83d"}', "prompt holds half a character"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' twice"),
    ],
)
def test_a_mistake_is_told_with_the_files_line_the_key_and_the_value(tmp_path, row, why):
    path = written(tmp_path / "p.jsonl", f'\n\n{{"prompt": "a"}}\n{row}\n')
    with pytest.raises(ValueError, match=rf"p\.jsonl line 4(:| is no JSON:) .*{why}"):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.csv", "prompt,seed\na,1\nb,x\n", r"p\.csv line 3: seed='x' is no number"),
        ("p.csv", "prompt,seed\na red circle, moving,1\n", "line 2 has 3 fields"),
        ("p.csv", "a red circle\nb\n", "line 2: it has 'a red circle'; a line may have prompt"),
        ("p.txt", b"a\nb\xe9\n", "line 2 is no text in UTF-8"),
        ("p.txt", "one\rtwo\r", "no line ends but"),
        ("p.txt", '{"prompt": "a"}\n{"prompt": "b"}\n', r"holds JSON; call it \.jsonl"),
        ("p.txt", '[\n{"prompt": "a"}]', r"holds JSON; call it \.json,"),
        ("p.md", "a", r"of no kind that is read: \.txt .*\.csv"),
        ("p", "a", "of no kind that is read"),
        ("p.json", '{"prompt": "a"}', "holds no list"),
        ("gone.txt", None, "does not exist"),
        ("", None, "of no kind that is read"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path, name, content, why):
    if content is not None:
        written(tmp_path / name, content)
    with pytest.raises(ValueError, match=why):
        read_file(tmp_path / name)


def test_nothing_to_make_is_told(tmp_path):
    for prompt, file in ((None, None), ([], None), (None, written(tmp_path / "p.txt", "\n \n"))):
        with pytest.raises(ValueError, match="nothing to make"):
            read_prompts(prompt, file)
    with pytest.raises(ValueError, match="half a character"):
        read_prompts("\udce9", None)


@pytest.mark.parametrize(
    "said", [{"fps": 0}, {"area": -5}, {"samples": 1.5}, {"samples": 0}, {"seconds": "2"}, {"seed": 1.5}, {"first": 1.1}, {"enlarge": 0.5}]
)
def test_numbers_of_a_command_are_checked_by_key(said):
    (key,) = said
    with pytest.raises(ValueError, match=f"^{key}="):
        refuse_numbers(said, NUMBERS)
    refuse_numbers({key: None, "fps": 7.5, "seconds": 0, "seed": -3, "first": 1, "samples": 2.0, "steps": 1}, NUMBERS)
    assert NUMBERS["samples"].of(2.0, "samples") == 2 and isinstance(NUMBERS["seconds"].of(2, "seconds"), float)


def test_a_negative_prompt_without_guidance_is_refused():
    for negative, lines in (("n", [Line("a")]), ("", [Line("a"), Line("b", negative="n")])):
        refuse_unguided(negative, lines, {"scale": 4.0})
        with pytest.raises(ValueError, match=r"negative='n' has no effect at guidance\.scale=1"):
            refuse_unguided(negative, lines, {"scale": 1.0})
    refuse_unguided("", [Line("a", negative="")], {"scale": 1})
    assert (negative_of(None), negative_of("n"), negative_of(3)) == ("", "n", "3")
    with pytest.raises(ValueError, match="is no text"):
        negative_of(["a", "b"])


@pytest.mark.parametrize(
    ("guidance", "chosen", "why"),
    [
        ({"scale": 6.0}, "none", "guidance=none guides nothing, and guidance.scale=6.0 does"),
        ({"scale": 1.0, "interval": [0.1, 0.5]}, "none", "guidance.interval=.* has no effect"),
        ({"scale": 1, "rescale": 0.5}, "cfg", "guidance.rescale=0.5 has no effect"),
    ],
)
def test_what_says_how_to_guide_is_refused_where_nothing_is_guided(guidance, chosen, why):
    with pytest.raises(ValueError, match=why):
        refuse_unguided("", [Line("a")], guidance, chosen)


NONE = dict.fromkeys(("seconds", "fps", "area", "negative", "input", "output"))
DEFAULTS = {**NONE, "prompts": "p.csv", "size": "1:1", "seed": 0, "input_frames": 1, "replace": False}


@pytest.mark.parametrize(
    ("lines", "changes", "why"),
    [
        ([Line("a", seconds=1), Line("b", seconds=0)], {"seconds": 4}, "seconds=4 has no effect: every line of prompts=p.csv sets its own"),
        ([Line("a", seed=3)], {"seed": 0}, "seed=0 has no effect"),
        ([Line("a", negative="")], {"negative": "grey"}, "negative=grey has no effect"),
        ([Line("a", size="16x16")], {"area": 4096}, "area=4096 has no effect: every size is said in pixels"),
        ([Line("a")], {"size": "64x64", "area": 4096}, "area=4096 has no effect"),
        ([Line("a")], {"input_frames": 5}, "input_frames=5 has no effect without input="),
        ([Line("a")], {"replace": True}, "replace=true has no effect without output="),
        ([Line("a", seconds=1), Line("b")], {"seconds": 4}, None),
        ([Line("a", size="16x16"), Line("b", size="9:16")], {"area": 4096}, None),
        ([Line("a")], {"size": "9:16", "area": 4096, "seed": 3, "negative": "grey"}, None),
        ([Line("a", fps=4)], {"fps": None}, None),
        ([Line("a")], {"input": "x.mp4", "input_frames": 5, "output": "o", "replace": True}, None),
    ],
)
def test_a_key_that_nothing_made_would_follow_is_refused(lines, changes, why):
    config = {**DEFAULTS, **changes}
    if why is None:
        refuse_idle(config, [*changes], lines)
        return
    with pytest.raises(ValueError, match=why):
        refuse_idle(config, [*changes], lines)


def test_each_request_says_which_of_its_words_are_lost():
    text = ByteEncoder(width=8, depth=1, reach=1, max_tokens=6)
    requests = [Request(prompt, 1, 8, 8, fps=8.0, seed=0, sample=0, negative="grey and dull") for prompt in ("short", "longer one", "ünï")]
    made, told = with_cuts(requests, text.limits())
    assert [request.cut for request in made] == [
        {"negative": "and dull"},
        {"prompt": "r one", "negative": "and dull"},
        {"negative": "and dull"},
    ]
    assert told[0].startswith("1 of 3 prompts is longer than text.max_tokens=6") and told[1].startswith("1 of 1 negatives")
    assert with_cuts(requests, [])[0] == requests
