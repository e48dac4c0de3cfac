"""The toy world stands in for `conf/` and adds one room to the package; own modules that leave a mark when they are imported."""

import sys

import pytest

import sora
from sora.config import compose, targets
from sora.config.command_line import help as page
from sora.system.own_modules import OWN
from tests.config.own_material import TELLTALE
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


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.delenv(OWN, raising=False)
    monkeypatch.delenv("SORA_CONFIG_DIR", raising=False)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package that can be imported, whose modules leave a mark when they are; the mark's path."""
    (tmp_path / "lab_of_mine/inner").mkdir(parents=True)
    mark = tmp_path / "mark"
    for name in ("__init__", "blocks", "inner/deep"):
        (tmp_path / f"lab_of_mine/{name}.py").write_text(TELLTALE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    for name in [name for name in sys.modules if name.startswith("lab_of_mine")]:
        del sys.modules[name]
