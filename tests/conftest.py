"""What every test runs under: checked annotations, one thread, no network, quick tests first."""

import os
import tempfile

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
    """Kills, full disks and flipped bits at every place; see `tests.training.faults`."""
    from tests.training.faults import Faults

    return Faults()


LONGEST = ("tests/test_own_videos.py", "tests/gpu/test_on_cpu.py")  # minutes each: begun last, one would keep the other process waiting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones last, so that a mistake shows early, and of those the longest first; otherwise the order of the files."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, not item.nodeid.startswith(LONGEST)))
