"""What every test runs under: checked annotations, one thread, no network, quick tests first."""

import gc
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two cores shared by processes of one thread each beat spinning pools
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["XDG_STATE_HOME"] = os.path.join(tempfile.gettempdir(), f"sora-tests-{os.getuid()}")  # the key of the tests' own seals

import pytest

from tests.typecheck import check_package

# Shapes and types at the doors are checked here and nowhere else: the checks would break torch.compile.
check_package("sora")


@pytest.fixture
def faults():
    """Kills, full disks and flipped bits at every place; see `tests.faults`."""
    from tests.faults import Faults

    return Faults()


APART = ("attacks", "slurm")  # markers of folders that bear their names


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a folder whose marker is not wanted, unless it is named: its tests would be made in every process, and then passed over."""
    wanted, folder = config.option.markexpr, collection_path.relative_to(config.rootpath).as_posix()
    named = any(Path(word.partition("::")[0]).resolve().is_relative_to(collection_path) for word in config.args)
    return True if any(folder == f"tests/{name}" and f"not {name}" in wanted for name in APART) and not named else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without looking for garbage among millions of objects that stay; what there is then is not searched again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


LONGEST = ("tests/test_own_videos.py", "tests/gpu/test_on_cpu.py")  # minutes each: begun last, one would keep the other process waiting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones last, so that a mistake shows early, and of those the longest first; otherwise the order of the files."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, not item.nodeid.startswith(LONGEST)))
