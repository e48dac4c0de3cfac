"""Words of stored files that two readers would read differently, or that stand for more than they say: refused where they are parsed."""

import time

import pytest
import yaml
from omegaconf import OmegaConf

from sora.gate.interpolation_limits import calls_resolver, refuse_growth, refuse_resolvers
from sora.gate.records import json_of as table_of
from sora.gate.texts import CARD, CONFIG, json_lines, json_of, read_json, yaml_of

JSON = {
    "a key twice": b'{"kind": "vae", "kind": "diffusion"}',
    "a key twice, deeper": b'{"a": [{"b": {"c": 1, "d": 2, "c": 3}}]}',
    "a key twice, once in escapes": b'{"kind": 1, "\\u006bind": 2}',
    "not a number": b'{"a": NaN}',
    "an end of numbers": b"[Infinity]",
    "the other end": b"[-Infinity]",
    "a number beyond floats": b"[1e400]",
    "below all floats": b"[-1E+999]",
    "very many digits before a point": b"[" + b"9" * 400 + b".0]",
    "very many digits": b"[" + b"9" * 5000 + b"]",
    "half a character": b'{"a": "\\ud800"}',
    "two halves the wrong way round": b'["\\udc00\\uD83D"]',
    "half a character in a key": b'{"\\uDFFF": 1}',
    "half a character in bytes": b'{"a": "\xed\xa0\x80"}',
    "a mark of bytes": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32-le"),
    "Latin": '{"a": "é"}'.encode("latin-1"),
    "letters too long in bytes": b'{"a": "\xc0\xaf"}',
    "a comment": b'{"a": 1} // b',
    "a comma too many": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "a bare key": b"{a: 1}",
    "a nought before": b"[01]",
    "a plus": b"[+1]",
    "hexadecimal": b"[0x10]",
    "no digits behind a point": b"[1.]",
    "two values": b'{"a": 1}{"b": 2}',
    "a nul": b'{"a": 1}\0',
    "a nul in a text": b'{"a": "\0"}',
    "a tab in a text": b'{"a": "\t"}',
    "digits of another script": '["a", ٣]'.encode(),
    "a text without an end": b'{"a": "' + b"x" * 100_000,
    "lists without an end": b"[" * 100_000,
    "mappings without an end": b'{"a":' * 100_000,
    "commas without an end": b"[" + b"1," * 300_000 + b"1]",
}


@pytest.mark.parametrize("what", JSON)
def test_json_says_one_thing(tmp_path, what):
    began = time.process_time()
    with pytest.raises(ValueError) as refusal:
        json_of(JSON[what], limit=CARD)
    (tmp_path / "a.json").write_bytes(JSON[what])
    with pytest.raises(ValueError, match=r"a\.json is damaged: ") as named:
        read_json(tmp_path / "a.json")
    assert time.process_time() - began < 2 and max(len(str(error.value)) for error in (refusal, named)) < 400
    assert "\n" not in str(refusal.value) and str(refusal.value).isascii()


@pytest.mark.parametrize("what", [name for name in JSON if "mark" not in name and "UTF" not in name])
def test_a_line_of_a_log_that_does_not_is_none(what):
    whole = b'{"step": 1}\n' + JSON[what].replace(b"\n", b" ") + b'\n{"step": 2}\n'
    try:
        assert [row["step"] for row in json_lines(whole, limit=CARD) if isinstance(row, dict)] == [1, 2]
    except ValueError as error:  # of more items than such a file has
        assert "items" in str(error)


@pytest.mark.parametrize("what", ["a key twice", "half a character", "a number beyond floats"])
def test_a_table_of_captions_says_one_thing(what):
    value = None
    try:
        value = table_of(JSON[what].decode("utf-8", "surrogatepass"), "captions.json")
    except ValueError as error:
        assert "captions.json" in str(error)
    assert value is None or what != "a key twice"  # texts and numbers are judged where a caption or a rate is taken of them


PYTHON = ("object/apply:os.system", "object/new:os.system", "object:os.system", "name:os.system", "module:os", "tuple", "bytes", "complex")
TAGS = ("!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!!bool maybe", "!!int x", "!!float x")
YAML = {
    **{f"a program, {word}": f"kind: !!python/{word} ['true']\n" for word in PYTHON},
    **{f"a tag, {tag.split()[0]}": f"kind: {tag}\n" for tag in TAGS},
    "a tag of one's own": "kind: !mine diffusion\n",
    "a tag by its whole name": "kind: !<tag:yaml.org,2002:python/object/apply:os.system> ['true']\n",
    "a tag by another name": "%TAG ! tag:yaml.org,2002:python/\n---\nkind: !object/apply:os.system ['true']\n",
    "a tag of a text": "kind: !!str diffusion\n",
    "a tag of a mapping": "kind: !!map {a: 1}\n",
    "a tag of a key": "!!str kind: diffusion\n",
    "a tag of nothing": "kind: !!null\n",
    "a bomb of aliases": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias of itself": "a: &a [*a]\n",
    "an alias as a key": "a: &a b\n*a : c\n",
    "a merge": "<<: {kind: diffusion}\nsteps: 3\n",
    "a merge of several": "<<: [{kind: diffusion}, {kind: vae}]\n",
    "a merge by an alias": "a: &a {kind: diffusion}\nb:\n  <<: *a\n",
    "a merge by a tag": "!!merge a: {b: 1}\n",
    "a key twice": "kind: diffusion\nkind: vae\n",
    "a key twice, deeper": "a:\n- b: {c: 1, d: 2, c: 3}\n",
    "a key twice, once in quotes": 'kind: diffusion\n"kind": vae\n',
    "a key twice, once in escapes": 'kind: diffusion\n"\\x6bind": vae\n',
    "a date": "kind: 2026-11-30\n",
    "a date of no month": "kind: 2026-13-40\n",
    "a time": "kind: 2026-11-30T10:00:00Z\n",
    "a date as a key": "2026-11-30: x\n",
    "yes as a key": "yes: x\n",
    "off as a key": "off: x\n",
    "nothing as a key": "~: x\n",
    "a list as a key": "? [a]\n: x\n",
    "a number as a key": "0x10: x\n",
    "the sign of a value": "kind: =\n",
    "not a number": "steps: .nan\n",
    "an end of numbers": "steps: -.INF\n",
    "very many digits": "steps: " + "9" * 20_000 + "\n",
    "very many digits of another base": "steps: 0b" + "1" * 200_000 + "\n",
    "half a character": 'kind: "\\uD800"\n',
    "half a character in a key": '"\\uDC00": 1\n',
    "two documents": "kind: diffusion\n---\nkind: vae\n",
    "a directive": "%YAML 9.9\n---\nkind: diffusion\n",
    "letters that end": 'kind: "a\\',
    "control letters": "kind: a\x07b\n",
    "a nul": "kind: a\0\n",
    "UTF-16": "kind: diffusion\n".encode("utf-16"),
    "Latin": "kind: é\n".encode("latin-1"),
    "deep": "a: " + "[" * 60 + "]" * 60 + "\n",
    "deep by indents": "".join(" " * depth + "a:\n" for depth in range(60)) + " " * 60 + "x\n",
}


@pytest.mark.parametrize("what", YAML)
def test_yaml_says_one_thing(what):
    content, began = YAML[what] if isinstance(YAML[what], bytes) else YAML[what].encode(), time.process_time()
    with pytest.raises(ValueError) as refusal:
        yaml_of(content, limit=CONFIG)
    told = str(refusal.value)
    assert time.process_time() - began < 5 and "\n" not in told and len(told) < 400 and told.isascii(), told


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "ON", "1:30", "0o17", "1_000", "1e400", "null", "~", "''", "+1", ".5"])
def test_a_word_of_yaml_is_of_one_kind_that_a_form_can_judge(word):
    value = yaml_of(f"a: {word}\n".encode())["a"]
    assert value == yaml.safe_load(word) and isinstance(value, str | bool | int | float | None)


def test_what_we_write_ourselves_is_read_as_it_was():
    said = {"a": [1, 2.5, -1e-300, True, None], "b": {"yes": "on", "c": "1e5", "é": "2026-11-30", "=": "<<", "~": "🎈", "1": "\x1b"}}
    assert yaml_of(OmegaConf.to_yaml(OmegaConf.create(said)).encode()) == said


CALLS = (
    "${oc.env:HOME}",
    "${oc.env:HOME,x}",
    "${oc.create:{a: 1}}",
    "${oc.decode:'${oc.env:HOME}'}",
    "${oc.select:a.b}",
    "${oc.deprecated:a}",
    "${oc.dict.keys:a}",
    "${oc.dict.values:a}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${mine:x}",
    "${ mine : x }",
    "${${a}:HOME}",
    "${oc.${a}:HOME}",
    "a ${b} ${oc.env:HOME}",
    "${a.${oc.env:HOME}}",
    "\\${a} ${oc.env:HOME}",
    "${a}${b:}",
    "${a[${oc.env:HOME}]}",
    "$${oc.env:HOME}",
    "${oc.env:${oc.env:HOME}}",
)


@pytest.mark.parametrize("word", CALLS)
@pytest.mark.parametrize("shape", [lambda word: {"a": word}, lambda word: {"a": [[{"b": [word]}]]}, lambda word: {"a": {word: 1}}])
def test_a_reference_calls_nothing_wherever_it_stands(word, shape):
    with pytest.raises(ValueError, match="resolver"):
        refuse_resolvers(shape(word))


@pytest.mark.parametrize("word", ["${a}", "${a.b}", "a: ${b}", "${.a}", "${..a}", "${a} : x", "{a: 1}", "$a:b", "}${a}:"])
def test_a_plain_reference_calls_nothing(word):
    assert not calls_resolver(word)


@pytest.mark.parametrize("text", ["${a}" * 25, "${a}" * 24 + "x" * 11_000, "${" * 100_000, "x" * (1 << 20) + "${a}" * 12])
def test_references_stand_for_no_more_than_memory_holds(text):
    with pytest.raises(ValueError, match="references"):
        refuse_growth(text)
