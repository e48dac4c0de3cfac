"""Packs of frames by plan: the index is a step number. A step depends on the plan alone, never on workers or earlier steps."""

from __future__ import annotations

import gc
import hashlib
import os
import queue
import signal
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import queues
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sora.data.index.decoded import decoded_by
from sora.data.index.index import Index, open_indexes
from sora.data.loading.caption_checks import selected
from sora.data.loading.quarantine import BadClip, Quarantine, first_readable, of_the_clip, planned_keys
from sora.data.plan.crops import CropPlan
from sora.data.plan.steps import Item
from sora.system.draws import sample_id
from sora.system.processes import UNSENT, Parent, born_deaf, ending, ignore_asking
from sora.system.torch_private import DataLoaderProcesses
from sora.tokens import Movable
from sora.video.reader import VideoReader

_SLACK = 8  # a clip above 1/8 of the cache is not cached: it would evict all others
_NICENESS = 10  # of workers, which must not take the core of the thread that starts the next step
_LOOK_UP = 1.0  # seconds between the receiving thread's checks whether it should end


@dataclass(frozen=True)
class FrameBatch(Movable):
    """Crops of one shape. fps: frames a second. All random draws for a crop follow from its sample id and epoch."""

    frames: UInt8[Tensor, "B T H W 3"]
    fps: Float[Tensor, "B"]
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]
    keys: tuple[str, ...]


@runtime_checkable
class StepData(Protocol):
    """A dataset of steps. `share` returns the part of one of several ranks, `[step]` the whole step."""

    def __getitem__(self, step: int) -> Any: ...

    def share(self, step: int, *, ranks: int, rank: int) -> Any: ...


class FrameData:
    """The datasets of frames that a run reads, and how: the settings of conf/data/frames.yaml.

    folders: datasets of `sora prepare`. split: the split of each that is read. weights: the datasets' shares (null: by their numbers of
    clips). max_bad_share: share of all clips that may be unreadable before the run stops. cache_mb and reader: see `FrameBatches`.
    selection: see `open_indexes`.
    """

    def __init__(
        self,
        *,
        folders: Sequence[str],
        split: str,
        weights: Sequence[float] | None,
        max_bad_share: float,
        cache_mb: float,
        reader: VideoReader,
        selection: str | Sequence[str | None] | None = None,
    ) -> None:
        self.indexes = open_indexes(folders, split, sets=[], selection=selection)  # no captions are read
        self.weights, self.max_bad_share, self.cache_mb, self.reader = weights, max_bad_share, cache_mb, reader

    @property
    def depends(self) -> dict[str, str]:
        """The identities of a run's data."""
        return {**selected(self.indexes), "data": self.fingerprint, "reader": decoded_by(self.reader, *self.indexes)}

    @property
    def fingerprint(self) -> str:
        """A hash of all the clips, in order."""
        return hashlib.sha256("\n".join(index.fingerprint for index in self.indexes).encode()).hexdigest()

    def batches(self, plan: CropPlan, *, quarantine: Path | str | None) -> FrameBatches:
        """The dataset of a plan's steps. quarantine: the file that lists bad clips (None: the list is held in memory)."""
        clips = sum(len(index) for index in self.indexes)
        kept = Quarantine(quarantine, clips=clips, max_share=self.max_bad_share)
        return FrameBatches(self.indexes, plan, quarantine=kept, cache_mb=self.cache_mb, reader=self.reader)


class FrameBatches(Dataset):
    """The decoded crops of each step of a `CropPlan`: `[step] -> [FrameBatch, ...]`, one for each pack.

    A clip that cannot be read is recorded in the quarantine, and the plan's replacement takes its place. cache_mb: memory of one process
    for decoded clips, which are used again later; it changes no result. reader: decodes the clips.
    """

    def __init__(self, indexes: Sequence[Index], plan: CropPlan, *, quarantine: Quarantine, cache_mb: float, reader: VideoReader) -> None:
        self.indexes, self.plan, self.quarantine = tuple(indexes), plan, quarantine
        self._clips = _Clips(self.indexes, round(cache_mb * 2**20), reader)

    def __getitem__(self, step: int) -> list[FrameBatch]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[FrameBatch]:
        """One rank's batches of a step."""
        self.quarantine.enter(step)
        return [self._pack(pack.items) for pack in self.plan.at(step).share(ranks=ranks, rank=rank)]

    def _pack(self, items: Sequence[Item]) -> FrameBatch:
        crops = [self._readable(item) for item in items]
        keys = tuple(self._key(item) for item, _ in crops)
        return FrameBatch(
            frames=torch.from_numpy(np.stack([frames for _, frames in crops])),
            fps=torch.tensor([self._fps(item) for item, _ in crops], dtype=torch.float32),
            sample_ids=tuple(sample_id(key, item.window) for key, (item, _) in zip(keys, crops, strict=True)),
            epochs=tuple(item.epoch for item, _ in crops),
            keys=keys,
        )

    def _readable(self, planned: Item) -> tuple[Item, UInt8[np.ndarray, "T H W 3"]]:
        """The planned crop or its replacement."""
        found, why = first_readable(planned, self._read, plan=self.plan, quarantine=self.quarantine, locate=self._place)
        if found is None:
            raise ValueError(f"no clip is left to stand in for {self._key(planned)}: {why}")
        return found

    def _place(self, item: Item) -> tuple[Index, int]:
        index, row = self.plan.locate(item.row)
        return self.indexes[index], row

    def _read(self, item: Item) -> tuple[Item, UInt8[np.ndarray, "T H W 3"]]:
        return item, self._clips.crop(*self.plan.locate(item.row), item)

    def keys(self, step: int) -> dict[int, str]:
        """The keys of the clips that are planned for a step, by sample id."""
        return planned_keys(self.plan, self._key_of, step)

    def _key(self, item: Item) -> str:
        return self._key_of(item.row)

    def _key_of(self, place: int) -> str:
        index, row = self.plan.locate(place)
        return self.indexes[index].keys[row]

    def _fps(self, item: Item) -> float:
        index, row = self.plan.locate(item.row)
        return float(self.indexes[index].fps[row])


class _Clips:
    """Reads crops of stored clips, with a cache of the clips decoded last."""

    def __init__(self, indexes: tuple[Index, ...], cache_bytes: int, reader: VideoReader) -> None:
        self._indexes, self._room, self._reader = indexes, cache_bytes, reader
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._used = 0

    def crop(self, number: int, row: int, item: Item) -> UInt8[np.ndarray, "T H W 3"]:
        assert item.crop is not None
        box, index = item.crop, self._indexes[number]
        space = (slice(None), slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
        size = int(index.frames[row]) * int(index.heights[row]) * int(index.widths[row]) * 3
        if size * _SLACK > self._room:
            return read_clip(index, row, start=box.start, frames=box.frames, reader=self._reader)[space]
        return self._whole(number, row, size)[box.start : box.start + box.frames][space]

    def _whole(self, number: int, row: int, size: int) -> UInt8[np.ndarray, "T H W 3"]:
        place = (number, row)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        clip = read_clip(self._indexes[number], row, reader=self._reader)
        self._kept[place] = clip
        self._used += size
        while self._used > self._room:
            _, oldest = self._kept.popitem(last=False)
            self._used -= oldest.nbytes
        return clip


def read_clip(index: Index, row: int, *, reader: VideoReader, start: int = 0, frames: int | None = None) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames of a stored clip (all, or `frames` from frame `start`), checked against the index.

    Raises `BadClip` if the clip's bytes changed, do not decode cleanly, or have another size or number of frames.
    """
    row = int(row)
    member = index.member(row)
    wanted = int(index.frames[row]) - start if frames is None else frames
    named = f"clip {member.key} of {index.folder / member.shard}"
    with of_the_clip():
        got, _, report = reader.read(index.read_member(member), first=start, frames=wanted, name=named)
    if not report.clean:
        raise BadClip(f"{named} does not decode cleanly: {report}")
    if got.shape[1:3] != (index.heights[row], index.widths[row]):
        raise BadClip(f"{named} is {got.shape[1]}x{got.shape[2]}, its index says {index.heights[row]}x{index.widths[row]}")
    return got


class _Share(Dataset):
    """Dataset whose index is a step number and whose item is this rank's packs of that step, after `ahead`."""

    def __init__(self, dataset: StepData, ranks: int, rank: int, ahead: Callable[[Any], Any] | None) -> None:
        self.dataset, self.ranks, self.rank, self.ahead = dataset, ranks, rank, ahead

    def __getitem__(self, step: int) -> Any:
        loaded = self.dataset[step] if self.ranks == 1 else self.dataset.share(step, ranks=self.ranks, rank=self.rank)
        return loaded if self.ahead is None else self.ahead(loaded)


def step_loader(
    dataset: StepData,
    *,
    first: int,
    last: int,
    workers: int,
    ranks: int = 1,
    rank: int = 0,
    timeout: float = 600.0,
    lost: Callable[[str], object] | None = None,
    ahead: Callable[[Any], Any] | None = None,
) -> DataLoader:
    """A DataLoader of steps `first` to `last` - 1 in order, made by `workers` processes (0: in this one); their number changes no result.

    timeout: seconds after which a step that a worker does not deliver raises an error. lost: called with a text about workers that died,
    killed by the system or by a crash; this process then loads the steps itself (None: raise an error). ahead: applied to a step by the
    worker that loaded it, while earlier steps train; not applied without workers.
    """
    return _Loader(
        _Share(dataset, ranks, rank, ahead if workers else None),
        lost,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=partial(_start_worker, Parent.here()),
        timeout=timeout if workers else 0,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator().manual_seed(0),  # else the loader would draw from the global generator
    )


class _Loader(DataLoader):
    """A DataLoader that kills its workers when it ends: they ignore SIGTERM, so torch alone would wait for busy ones."""

    def __init__(self, dataset: Dataset, lost: Callable[[str], object] | None, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.__dict__["lost"] = lost  # past the __setattr__ of torch, which guards attributes after __init__

    def _get_iterator(self) -> Any:
        return _Iterator(self) if self.num_workers else super()._get_iterator()


class _Iterator(DataLoaderProcesses):
    """Iterator over steps that receives the next step in a thread while the previous one trains.

    A worker needs several turns to hand over shared memory: without the thread, milliseconds of waiting where workers keep all cores busy.
    """

    _sharing = 0  # number of this process's iterators with live workers

    def __init__(self, loader: _Loader) -> None:
        # Garbage collection writes to the objects it visits, which would copy every page shared with the workers; freeze exempts them.
        gc.collect()
        gc.freeze()
        _Iterator._sharing += 1
        self._owner, self._ended, self._steps, self._lost = os.getpid(), threading.Event(), iter(loader.sampler), loader.__dict__["lost"]
        before = signal.getsignal(signal.SIGCHLD)
        try:
            with born_deaf():  # until `_start_worker`
                super().__init__(loader)
        except BaseException:  # some worker could not be started
            for worker in getattr(self, "_workers", ()):
                worker.kill()
            self._let_go()
            raise
        if threading.current_thread() is threading.main_thread() and before is not None:
            # torch's handler raises at once when a worker dies, even in the middle of an update of the weights
            signal.signal(signal.SIGCHLD, before)
        self._data_queue = _Received(weakref.WeakMethod(self._dead))  # weak: the thread must not keep this object alive
        threading.Thread(target=_receive, args=(self._worker_result_queue, self._data_queue, self._ended), daemon=True).start()

    def __next__(self) -> Any:
        step = next(self._steps, None)
        if self._ended.is_set():
            if step is None:
                raise StopIteration
            return self._dataset[step]
        try:
            return super().__next__()
        except BaseException as error:  # the traceback would keep this object and its workers alive
            told = self._dead(patience=1.0) if isinstance(error, RuntimeError | OSError | EOFError) else []
            if not told and self._data_queue.unreceived:  # torch replaces this error by its own
                told = [self._data_queue.unreceived]
            self._shutdown_workers()
            if not told or self._lost is None or step is None:
                raise
            self._lost("; ".join(told))
        return self._dataset[step]

    def _dead(self, *, patience: float = 0.0) -> list[str]:
        """A text for each worker that died. patience: seconds to wait for a worker that may be dying."""
        end = time.monotonic() + patience
        while True:
            codes = [(number, worker.pid, worker.exitcode) for number, worker in enumerate(self._workers) if not worker.is_alive()]
            found = [f"loader worker {number} (process {process}) {ending(code)}" for number, process, code in codes if code]
            if found or time.monotonic() >= end:
                return found
            time.sleep(0.05)

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._owner:  # a copy of this object in a forked process
            return
        if not self._ended.is_set():
            self._let_go()
            super()._shutdown_workers()
        for worker in getattr(self, "_workers", ()):  # missing if __init__ failed early
            if worker.is_alive():
                worker.kill()

    def _let_go(self) -> None:
        """Mark the workers as ended; unfreeze garbage collection if no other iterator of this process has workers."""
        self._ended.set()
        _Iterator._sharing -= 1
        if not _Iterator._sharing:
            gc.unfreeze()


class _Received(queue.Queue):
    """A queue of steps. If a step could not be received, `get` raises the error, and `unreceived` says why. dead: gives the method that
    lists dead workers."""

    def __init__(self, dead: Callable[[], Callable[[], list[str]] | None]) -> None:
        super().__init__()
        self._dead, self.unreceived = dead, ""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                item = super().get(block, _LOOK_UP)
            except queue.Empty:
                dead = self._dead()
                if told := dead() if dead is not None else []:
                    raise RuntimeError("; ".join(told)) from None
                if not block or (end is not None and time.monotonic() >= end):
                    raise
                continue
            if isinstance(item, Exception):
                raise item
            return item


def _receive(sent: Any, received: _Received, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            received.put(sent.get(timeout=_LOOK_UP))
        except queue.Empty:
            continue
        except Exception as error:  # a worker died while sending, or open files ran out: `get` raises it
            few = "; raise the limit of open files (ulimit -n)" if "Too many open files" in str(error) or "ancdata" in str(error) else ""
            received.unreceived = f"a step that a loader worker made could not be taken over ({error}){few}"
            received.put(error)
            return


def _as_is(step: Any) -> Any:
    return step


def _unsent(error: Exception, _: object) -> None:
    os._exit(UNSENT)


def _start_worker(parent: Parent, _: int) -> None:
    """Set up a worker. It ignores signals to stop, which the main process handles: its death would lose the step that is being saved."""
    ignore_asking()
    parent.hold_to()
    # called in the thread that sends steps; without an exit the main process would wait for the step in vain
    queues.Queue._on_queue_feeder_error = staticmethod(_unsent)  # pyright: ignore[reportAttributeAccessIssue]
    os.nice(_NICENESS)
    torch.set_num_threads(1)
