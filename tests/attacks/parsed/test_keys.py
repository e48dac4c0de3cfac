"""Words of the wrong kind for the keys of every verb, through the whole command up to where its real work would begin: one line, code 2.

python -m pytest tests/attacks/parsed/test_keys.py          a spread
SORA_ALL_KEYS=1 python -m pytest …                          every key of every verb with every word; hours
"""

import os
import shutil
from unittest import mock

import pytest

from sora import cli
from tests.attacks.test_words import VERBS, keys

WORDS = (
    *("x", "-1", "0", "1e300", "1e400", "nan", "-inf", "1" + "0" * 30, "[]", "[x]", "[[]]", "[-1]", "[1,2,3,4]", "{}", "{a: 1}", "null"),
    *("true", "'true'", "''", "٣", "２", "1.5", "0x10", "-0.0", "1e-320", "9007199254740993", "x" * 3000, "a\nb", "\x1b[2J", "../x", "."),
    "{_target_: os.system}",
)
BEGINS = (  # where a command has read all that it was told, and works
    *("lightning.Trainer.fit", "sora.generation.generator.Generator.generate", "sora.vae.vae.VideoVAE.encode", "sora.export.write_run"),
    *("sora.ingest.preparing.keep", "sora.ingest.check.check", "sora.assembly.validation.evaluations"),
)
CASES = [
    (verb, key, WORDS[(7 * number + step) % len(WORDS)])
    for number, (verb, key) in enumerate((v, k) for v in VERBS for k in keys(v))
    for step in range(len(WORDS))
]
OFTEN = [("train", "kind", word) for word in ("x", "[[]]", "vae")]  # what had leaked through
SPREAD = CASES if os.environ.get("SORA_ALL_KEYS") else [*CASES[:: 7 * len(WORDS)], *OFTEN]


class Begun(BaseException):
    """A command is at its work."""


def begin(*_, **__):
    raise Begun


@pytest.mark.parametrize(("verb", "key", "word"), SPREAD, ids=lambda value: ascii(value[:24]).strip("'"))
def test_a_word_of_the_wrong_kind_is_one_line_that_names_its_key_or_is_taken(made, tmp_path, monkeypatch, capfd, verb, key, word):
    places = {"data": made / "data", "vae": made / "vae", "run": made / "live", "videos": made / "videos", "out": tmp_path / "out"}
    if verb == "encode":
        places["data"] = shutil.copytree(made / "data", tmp_path / "data")
    words = [one.format(**places) for one in VERBS[verb] if not one.startswith(f"{key}=")]
    monkeypatch.chdir(tmp_path)
    patches = [mock.patch(name, begin) for name in BEGINS]
    for patch in patches:
        patch.start()
    try:
        code = cli.main([verb, *words, f"{key}={word}"])
    except Begun:
        return  # a value of its kind
    finally:
        for patch in patches:
            patch.stop()
    told = capfd.readouterr()
    assert "Traceback" not in told.err and code in (0, 2), told.err
    if code == 2:
        lines = [line for line in told.err.strip().splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith(f"sora {verb}: ") and len(lines[0]) < 5000, told.err
        assert key in lines[0] or key.rpartition(".")[2] in lines[0] or key.partition(".")[0] in lines[0], told.err
        assert "\x1b" not in lines[0]
