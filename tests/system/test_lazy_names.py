"""What a room offers in Python: the names of its stub, found when they are asked for, the same objects that a configuration names."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sora
from sora.config import targets
from sora.config.build import resolve
from sora.system.lazy_names import offered

ROOT = Path(sora.__file__).parent
STUBS = {path.parent.name: path for path in ROOT.glob("*/__init__.pyi")}


def test_every_room_that_a_configuration_names_offers_the_same_names():
    """But for where a run is started and what it costs, which nobody builds by hand."""
    assert set(targets.ROOMS) - set(STUBS) == {"cost", "ingest", "launch"}
    for room in sorted(targets.ROOMS.keys() & STUBS):
        wanted = {name: found[0].module for name, found in targets.public_names(room).items()}
        lacking = {name: module for name, module in wanted.items() if offered(STUBS[room]).get(name) != module}
        told = "\n".join(f"from {module} import {name} as {name}" for name, module in lacking.items())
        assert not lacking, f"{STUBS[room]} lacks:\n{told}"


@pytest.mark.parametrize("room", sorted(STUBS))
def test_names_of_a_stub_are_there(room):
    package = importlib.import_module(f"sora.{room}")
    names = offered(STUBS[room])
    assert dir(package) == sorted(names)
    for name, module in names.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
        assert not (ROOT / room / name).exists() and not (ROOT / room / f"{name}.py").exists()  # a file would stand in its place
        if room in targets.ROOMS and name in targets.public_names(room):
            assert resolve(f"sora.{room}.{name}") is getattr(package, name)
    for name in ("nothing", "_private", "__path_of_nothing__"):
        with pytest.raises(AttributeError, match=f"module 'sora.{room}' has no attribute '{name}'"):
            getattr(package, name)


def test_a_room_imports_none_of_its_files_before_they_are_asked_for():
    code = (
        "import sys, sora.dit, sora.vae, sora.diffusion; assert 'torch' not in sys.modules; from sora.dit import DiT; assert DiT.__name__"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
