"""What the tests of own modules share: the example, a module that tells when it is imported, and a command that is refused."""

from pathlib import Path

from sora import cli

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/own_block"
GATED = str(EXAMPLE / "gated.py")
EVERY = str(Path(__file__).with_name("every_kind.py"))
TELLTALE = "import pathlib\npathlib.Path({mark!r}).write_text('imported')\ndef part(number, parts):\n    raise AssertionError\n"


def told(capsys, *words: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert cli.main([*words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said
