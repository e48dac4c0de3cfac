"""Loading by plan: step number in, frames out. What a step holds depends on the plan alone, never on workers or what came before."""

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
from sora.data.index.index import Index, refuse_no_folders
from sora.data.loading.quarantine import BadClip, Quarantine, first_readable, of_the_clip, planned_keys
from sora.data.plan.crops import CropPlan
from sora.data.plan.steps import Item
from sora.system.draws import sample_id
from sora.system.guarded_pool import UNSENT, ending
from sora.system.processes import Parent, born_deaf, ignore_asking
from sora.system.torch_private import DataLoaderProcesses
from sora.tokens import Movable
from sora.video.reader import VideoReader

_SLACK = 8  # a clip above 1/8 of the cache is not kept: it would push out everything else
_NICENESS = 10  # of workers: what they still decode must not take the core from the thread that starts the next step
_LOOK_UP = 1.0  # seconds after which the thread that receives steps looks whether it is still wanted


@dataclass(frozen=True)
class FrameBatch(Movable):
    """Crops of one shape. fps in frames a second; sample_ids and epochs are what every draw for a crop follows from."""

    frames: UInt8[Tensor, "B T H W 3"]
    fps: Float[Tensor, "B"]
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]
    keys: tuple[str, ...]


@runtime_checkable
class StepData(Protocol):
    """A dataset of steps. `share` is what one of several ranks trains on, `[step]` the whole of it."""

    def __getitem__(self, step: int) -> Any: ...

    def share(self, step: int, *, ranks: int, rank: int) -> Any: ...


class FrameData:
    """The datasets of frames that a run reads, and how: what conf/data/frames.yaml sets.

    folders: of `sora prepare`. split: of each. weights: the datasets' shares (null: by their numbers of clips). max_bad_share: of
    all clips may be unreadable before the run stops. cache_mb and reader: see `FrameBatches`.
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
    ) -> None:
        refuse_no_folders(folders)
        self.indexes = tuple(Index.open(folder, split) for folder in folders)
        self.weights, self.max_bad_share, self.cache_mb, self.reader = weights, max_bad_share, cache_mb, reader

    @property
    def depends(self) -> dict[str, str]:
        """What a run on these depends on."""
        return {"data": self.fingerprint, "reader": decoded_by(self.reader, *self.indexes)}

    @property
    def fingerprint(self) -> str:
        """Of all the clips, in order."""
        return hashlib.sha256("\n".join(index.fingerprint for index in self.indexes).encode()).hexdigest()

    def batches(self, plan: CropPlan, *, quarantine: Path | str | None) -> FrameBatches:
        """The plan's steps, read from these datasets. quarantine: the file that lists bad clips (None: in memory)."""
        clips = sum(len(index) for index in self.indexes)
        kept = Quarantine(quarantine, clips=clips, max_share=self.max_bad_share)
        return FrameBatches(self.indexes, plan, quarantine=kept, cache_mb=self.cache_mb, reader=self.reader)


class FrameBatches(Dataset):
    """The crops of each step of a `CropPlan`, decoded: `[step] -> [FrameBatch, ...]`, one for each pack.

    A clip that cannot be read is recorded in the quarantine, and the plan's replacement takes its place. cache_mb: memory of one
    process for decoded clips, kept for their next turn; it changes no result. reader: decodes them.
    """

    def __init__(self, indexes: Sequence[Index], plan: CropPlan, *, quarantine: Quarantine, cache_mb: float, reader: VideoReader) -> None:
        self.indexes, self.plan, self.quarantine = tuple(indexes), plan, quarantine
        self._clips = _Clips(self.indexes, round(cache_mb * 2**20), reader)

    def __getitem__(self, step: int) -> list[FrameBatch]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[FrameBatch]:
        """What one rank trains on at a step."""
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
        """The planned crop, or the one that stands in for it."""
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
    """Crops of stored clips, with the clips decoded last kept in memory."""

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
    """The frames of a stored clip (all, or `frames` from frame `start`), exactly as the index describes them.

    A `BadClip` names the clip if its bytes changed, do not decode cleanly, or are another size or number of frames.
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
    """The part of one rank, for a sampler of step numbers, with `ahead` done to it."""

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
    """Steps `first` to `last` - 1 in order, prepared by `workers` processes (0: in this one); their number changes nothing.

    timeout: seconds after which a step that a worker does not deliver is an error instead of a silent wait. lost: called with what is
    known of workers that died, killed by the system or by a crash; this process then loads the steps by itself (None: it is an error).
    ahead: what workers do to a loaded step, beside the training on earlier ones; without workers there is nobody to do so.
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
        generator=torch.Generator().manual_seed(0),  # its own: the loader would draw from the global one otherwise
    )


class _Loader(DataLoader):
    """A loader whose workers end with it: they ignore SIGTERM, so those that are still busy at the end are killed."""

    def __init__(self, dataset: Dataset, lost: Callable[[str], object] | None, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.__dict__["lost"] = lost  # torch keeps an eye on what is set later

    def _get_iterator(self) -> Any:
        return _Iterator(self) if self.num_workers else super()._get_iterator()


class _Iterator(DataLoaderProcesses):
    """Steps are received by a thread while the one before is trained on.

    It takes little work, but several turns of a worker to hand over memory: milliseconds of waiting where workers keep every core busy.
    """

    _sharing = 0  # iterators of this process whose workers live

    def __init__(self, loader: _Loader) -> None:
        # What is looked through for garbage is written to, by whoever looks: soon no page would be shared with the workers any more.
        gc.collect()
        gc.freeze()
        _Iterator._sharing += 1
        self._owner, self._ended, self._steps, self._lost = os.getpid(), threading.Event(), iter(loader.sampler), loader.__dict__["lost"]
        before = signal.getsignal(signal.SIGCHLD)
        try:
            with born_deaf():  # until `_start_worker`
                super().__init__(loader)
        except BaseException:  # no process could be started, or not all
            for worker in getattr(self, "_workers", ()):
                worker.kill()
            self._let_go()
            raise
        if threading.current_thread() is threading.main_thread() and before is not None:
            # torch's handler raises that a worker died wherever the process is, even in the middle of an update of the weights
            signal.signal(signal.SIGCHLD, before)
        self._data_queue = _Received(weakref.WeakMethod(self._dead))  # the thread knows it, and must not keep this object alive
        threading.Thread(target=_receive, args=(self._worker_result_queue, self._data_queue, self._ended), daemon=True).start()

    def __next__(self) -> Any:
        step = next(self._steps, None)
        if self._ended.is_set():
            if step is None:
                raise StopIteration
            return self._dataset[step]
        try:
            return super().__next__()
        except BaseException as error:  # the end, or an error: its traceback would keep this object and its workers alive
            told = self._dead(patience=1.0) if isinstance(error, RuntimeError | OSError | EOFError) else []
            if not told and self._data_queue.unreceived:  # of which torch makes errors of its own
                told = [self._data_queue.unreceived]
            self._shutdown_workers()
            if not told or self._lost is None or step is None:
                raise
            self._lost("; ".join(told))
        return self._dataset[step]

    def _dead(self, *, patience: float = 0.0) -> list[str]:
        """What workers died of; patience: seconds in which one that is just dying may be gone."""
        end = time.monotonic() + patience
        while True:
            codes = [(number, worker.pid, worker.exitcode) for number, worker in enumerate(self._workers) if not worker.is_alive()]
            found = [f"loader worker {number} (process {process}) {ending(code)}" for number, process, code in codes if code]
            if found or time.monotonic() >= end:
                return found
            time.sleep(0.05)

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._owner:  # a copy that a later fork took along
            return
        if not self._ended.is_set():
            self._let_go()
            super()._shutdown_workers()
        for worker in getattr(self, "_workers", ()):  # which has none where no start was made
            if worker.is_alive():
                worker.kill()

    def _let_go(self) -> None:
        """From here on it has no workers; pages are shared with none when no other iterator has any."""
        self._ended.set()
        _Iterator._sharing -= 1
        if not _Iterator._sharing:
            gc.unfreeze()


class _Received(queue.Queue):
    """Steps, or why one could not be received, which is raised where it is asked for, and in words. dead: gives what tells of workers
    that died."""

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
        except Exception as error:  # such as a worker's death in the middle, or no more files: raised where the step is asked for
            few = "; raise the limit of open files (ulimit -n)" if "Too many open files" in str(error) or "ancdata" in str(error) else ""
            received.unreceived = f"a step that a loader worker made could not be taken over ({error}){few}"
            received.put(error)
            return


def _as_is(step: Any) -> Any:
    return step


def _unsent(error: Exception, _: object) -> None:
    os._exit(UNSENT)


def _start_worker(parent: Parent, _: int) -> None:
    """Signals are the main process's to answer: a worker that dies of SIGTERM would take the step that is being saved with it."""
    ignore_asking()
    parent.hold_to()
    # said by a thread that hands steps over, after which the step would be waited for in vain
    queues.Queue._on_queue_feeder_error = staticmethod(_unsent)  # pyright: ignore[reportAttributeAccessIssue]
    os.nice(_NICENESS)
    torch.set_num_threads(1)
