"""An engine on a Ray cluster: units are tasks, which run in guarded processes of whichever machines have a core free.

Ray does not tell a unit that crashes its decoder from a worker that died, and does not stop one that hangs. So a task hands its unit to a
guarded process, as `ProcessEngine` does, and Ray only repeats tasks whose machine was lost. Each worker of Ray keeps its guarded process
for all units that it is given, so models are loaded once. Units that take a moment share a task, as giving out each task takes some
milliseconds, too. Results come back to this process, which saves them.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from sora.curation.engines.local import USED
from sora.gate.sizes import Number
from sora.system.guarded_pool import GuardedPool, Hold, Outcome

INSTALL = "engine=ray needs Ray: pip install 'ray>=2.60,<3', which is the extra sora[ray]"
_AHEAD = 3  # tasks for each core of the cluster that are given out at once
_TASK = 0.5  # seconds that a task of several units is to take
_SHARING = 32  # units of a task, at most
_LOOK = 3.0  # seconds after which the head node is asked whether it is there
_PATIENCE = 3  # times that the head node may not answer
_LOSSES = 5  # machines that one unit may lose
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, which Ray would advise of
    "RAY_gcs_rpc_server_reconnect_timeout_s": "45",  # after which Ray ends this process with a trace of its own, unless `_gone` came first
}


class RayEngine:
    """Works on the machines of a Ray cluster, where the videos must have the same paths. A machine that is lost has its units done again.

    address: of the head node, such as 10.0.0.1:6379 (None: a cluster of this machine alone, started here). seconds: the most that one unit
    takes. memory_gb: address space of one process.
    """

    def __init__(self, *, address: str | None, seconds: float, memory_gb: float) -> None:
        for name, value in (("seconds", seconds), ("memory_gb", memory_gb)):
            Number(0, above=True).of(value, f"engine.{name}")
        self.address, self.seconds, self.memory_gb = address, seconds, memory_gb
        self._name = secrets.token_hex(8)
        self._ray: Any = None
        self._task: Any = None
        self._head = ""
        self._lost = False

    def start(self, cores: int | None = None) -> None:
        """Start or join the cluster; the first call does it otherwise. cores: of a cluster that is started here (None: all).

        Raises:
            ValueError: it cannot be joined or started.
        """
        if self._ray is not None:
            return
        where = f"engine.address={self.address}" if self.address else "a Ray cluster of this machine"
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError:
            raise ValueError(INSTALL) from None
        # Ray itself would wait for a quarter of an hour, and say so every five seconds
        if self.address is not None and not _answers(self.address):
            raise ValueError(f"{where} does not answer; start the head node there (ray start --head --port=6379), or give its HOST:PORT")
        more: dict[str, Any] = {"address": self.address or "local"}
        more |= {} if self.address else {"include_dashboard": False, "num_cpus": cores}
        try:
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # what went wrong it also raises
            ray.init(log_to_driver=False, configure_logging=False, **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where} cannot be joined or started: {str(error).splitlines()[0]}") from None
        self._ray, self._head = ray, str(ray.get_runtime_context().gcs_address)
        self._task = ray.remote(num_cpus=1, max_retries=_LOSSES, retry_exceptions=False)(_worked)

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        self.start()
        ray, task = self._ray, self._task
        if self._unanswered():  # what asks it would wait
            raise self._gone()
        call, shared = secrets.token_hex(8), ray.put(_Work(self._name, function, Hold(seconds=self.seconds, memory_gb=self.memory_gb)))
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        left, pending = iter(items), dict[Any, list[Any]]()
        share, units, seconds = 1, 0, 0.0
        while True:
            while len(pending) < most and (some := list(islice(left, share))):
                pending[task.remote(call, [shared], some)] = some
            if not pending:
                return
            for done in self._some(list(pending)):
                answer = self._answer(done, some := pending.pop(done))
                yield from (Outcome(item, *one) for item, one in zip(some, answer.units, strict=True))
                units, seconds = units + len(some), seconds + answer.seconds
                share = max(1, min(_SHARING, int(_TASK * units / max(seconds, 1e-3))))

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._ray is not None and not self._lost:
            self._ray.shutdown()
        self._ray = None

    def _some(self, tasks: list[Any]) -> list[Any]:
        """The tasks that have ended, at least one; ValueError if the cluster is gone."""
        while True:
            ready, _ = self._ray.wait(tasks, num_returns=1, timeout=_LOOK)
            if ready:
                return ready
            if self._unanswered():
                raise self._gone()

    def _unanswered(self) -> bool:
        """Whether the head node does not answer, several times."""
        for attempt in range(_PATIENCE):
            if _answers(self._head):
                return False
            time.sleep(_LOOK if attempt < _PATIENCE - 1 else 0.0)
        return True

    def _gone(self) -> ValueError:
        self._lost = True
        atexit.register(_leave)
        return ValueError(
            f"the Ray cluster at {self._head} went away; what is done is saved, so the same command goes on, with the cluster up again or "
            "with engine=process"
        )

    def _answer(self, done: Any, items: list[Any]) -> _Answer:
        ray = self._ray
        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:  # its machine was lost too often
            lost = _Unit(None, f"its machine was lost {_LOSSES} times: {type(error).__name__}", died=True)
            return _Answer([lost] * len(items), 0.0)


def _leave() -> None:
    """End this process at once, with the exit code of a user's mistake: Ray's own end would wait for a cluster that is gone, or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _answers(address: str) -> bool:
    """Whether something takes connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"engine.address={address} is no HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except (OSError, OverflowError, UnicodeError):
        return False
    return True


class _Work(NamedTuple):
    """What all tasks of a call share. engine: the name of the one that calls, which its processes on each core are kept for."""

    engine: str
    function: Callable[[Any], Any]
    hold: Hold


class _Unit(NamedTuple):
    """An outcome without its item, which need not travel back."""

    result: Any
    reason: str
    died: bool


class _Answer(NamedTuple):
    """What a task answers. seconds: that it took."""

    units: list[_Unit]
    seconds: float


# ---- in a worker of Ray

_calls: dict[str, _Work] = {}  # the latest one
_pools: dict[str, GuardedPool] = {}  # of the latest engine


def _worked(call: str, shared: list[Any], items: list[Any]) -> _Answer:
    """The outcomes of some units, in a process of its own, because a Ray worker has threads and connections. shared: a reference to the
    `_Work`, in a list, so that it is fetched once and not for every task."""
    begun = time.monotonic()
    if call not in _calls:
        import ray

        _calls.clear()
        _calls[call] = ray.get(shared[0])
    work = _calls[call]
    if work.engine not in _pools:
        import multiprocessing

        for engine in list(_pools):
            _pools.pop(engine).close()
        multiprocessing.set_forkserver_preload(["sora.curation.curating", *USED])
        _pools[work.engine] = GuardedPool(1, work.hold, start="forkserver")
    found = [_Unit(done.result, done.reason, done.died) for done in _pools[work.engine].in_order(work.function, items)]
    return _Answer(found, time.monotonic() - begun)
