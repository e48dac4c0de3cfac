"""The toy world stands in for `conf/` and adds one room to the package."""

import sys

import pytest

import sora
from sora.config import compose, targets
from sora.config.command_line import help as page
from tests.config.toy import lay_out


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of the toy world: `toy / "conf"` is the configuration, `sora.toyroom` a room."""
    lay_out(tmp_path)
    monkeypatch.setattr(sora, "__path__", [*sora.__path__, str(tmp_path)])
    monkeypatch.setattr(targets, "PACKAGE", tmp_path)
    monkeypatch.setattr(targets, "ROOMS", {**targets.ROOMS, "toyroom": ("toyroom",)})
    for module in (compose, page):
        monkeypatch.setattr(module, "config_dir", lambda: tmp_path / "conf")
    targets.syntax.cache_clear()
    targets.text_of.cache_clear()
    targets._defined.cache_clear()
    yield tmp_path
    sys.modules.pop("sora.toyroom", None)
    vars(sora).pop("toyroom", None)
    targets.syntax.cache_clear()
    targets.text_of.cache_clear()
    targets._defined.cache_clear()
