"""An engine on a Ray cluster: each unit is a task, which runs in a guarded process of whichever machine has a core free.

Ray does not tell a unit that crashes its decoder from a worker that died, and does not stop one that hangs. So a task starts a process of
its own for its unit, as `ProcessEngine` does, and Ray only repeats tasks whose machine was lost. Results come back to this process, which
saves them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from sora.gate.sizes import Number
from sora.system.guarded_pool import Outcome, as_done

INSTALL = "engine=ray needs Ray: pip install 'ray>=2.60,<3', which is the extra sora[ray]"
_AHEAD = 3  # tasks for each core of the cluster that are given out at once
_LOOK = 5.0  # seconds after which the head node is asked whether it is there
_PATIENCE = 3  # times that the head node may not answer
# What stages import; loaded once on each core, as every unit has a new process. Those that are not installed are passed over.
_USED = ("sora.curation.curating", "cv2", "scenedetect", "scipy.fft", "PIL.Image", "PIL.JpegImagePlugin", "c2pa")
_LOSSES = 5  # machines that one unit may lose


class RayEngine:
    """Works on the machines of a Ray cluster, where the videos must have the same paths. A machine that is lost has its units done again.

    address: of the head node, such as 10.0.0.1:6379 (None: a cluster of this machine alone, started here). seconds: the most that one unit
    takes. memory_gb: address space of one process.
    """

    def __init__(self, *, address: str | None, seconds: float, memory_gb: float) -> None:
        for name, value in (("seconds", seconds), ("memory_gb", memory_gb)):
            Number(0, above=True).of(value, f"engine.{name}")
        self.address, self.seconds, self.memory_gb = address, seconds, memory_gb
        self._ray: Any = None
        self._lost = False

    def start(self, cores: int | None = None) -> None:
        """Start or join the cluster; the first call does it otherwise. cores: of a cluster that is started here (None: all).

        Raises:
            ValueError: it cannot be joined or started.
        """
        if self._ray is not None:
            return
        try:
            import ray
        except ImportError:
            raise ValueError(INSTALL) from None
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default, which Ray would advise of
        where = f"engine.address={self.address}" if self.address else "a Ray cluster of this machine"
        if self.address is not None and not _answers(
            self.address
        ):  # Ray itself would wait for a quarter of an hour, and say so every five seconds
            raise ValueError(f"{where} does not answer; start the head node there (ray start --head --port=6379), or give its HOST:PORT")
        try:
            more: dict[str, Any] = (
                {"address": self.address} if self.address else {"address": "local", "include_dashboard": False, "num_cpus": cores}
            )
            ray.init(log_to_driver=False, configure_logging=False, **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where} cannot be joined or started: {str(error).splitlines()[0]}") from None
        self._ray = ray

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        self.start()
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=_LOSSES, retry_exceptions=False)(_worked)
        shared = ray.put(_Work(function, self.seconds, self.memory_gb))
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        left, pending = iter(items), dict[Any, Any]()
        while True:
            for item in islice(left, most - len(pending)):
                pending[task.remote(shared, item)] = item
            if not pending:
                return
            for done in self._some(list(pending)):
                item = pending.pop(done)
                yield self._outcome(done, item)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._ray is not None and not self._lost:
            self._ray.shutdown()
        self._ray = None

    def _some(self, tasks: list[Any]) -> list[Any]:
        """The tasks that have ended, at least one; ValueError if the cluster is gone."""
        unanswered = 0
        while True:
            ready, _ = self._ray.wait(tasks, num_returns=1, timeout=_LOOK)
            if ready:
                return ready
            unanswered = 0 if _answers(self._head()) else unanswered + 1
            if unanswered >= _PATIENCE:
                self._lost = True
                raise ValueError(
                    f"the Ray cluster at {self._head()} went away; what is done is saved, so the same command goes on, with the cluster up "
                    "again or with engine=process"
                )

    def _outcome(self, done: Any, item: Any) -> Outcome:
        ray = self._ray
        try:
            answer: _Answer = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:  # its machine was lost too often
            return Outcome(item, None, f"its machine was lost {_LOSSES} times: {type(error).__name__}", died=True)
        return Outcome(item, answer.result, answer.reason, answer.died)

    def _head(self) -> str:
        return str(self._ray.get_runtime_context().gcs_address)


def _answers(address: str) -> bool:
    """Whether something takes connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"engine.address={address} is no HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


class _Work(NamedTuple):
    function: Callable[[Any], Any]
    seconds: float
    memory_gb: float


class _Answer(NamedTuple):
    """An outcome without its item, which need not travel back."""

    result: Any
    reason: str
    died: bool


def _worked(work: _Work, item: Any) -> _Answer:
    """The outcome of one unit, in a process of its own, because a Ray worker has threads and connections."""
    import multiprocessing

    multiprocessing.set_forkserver_preload(list(_USED))
    limits = {"workers": 1, "seconds": work.seconds, "memory_gb": work.memory_gb}
    (done,) = as_done(work.function, [item], start="forkserver", **limits)
    return _Answer(done.result, done.reason, done.died)
