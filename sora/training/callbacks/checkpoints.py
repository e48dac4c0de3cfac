"""Restores and saves checkpoints during training, as a Lightning callback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch import Callback, Trainer

from sora.runs import checkpoint
from sora.runs.agreement import agreed, confirmed
from sora.runs.checkpoint import TrainingState
from sora.runs.run import Run
from sora.system import distributed as ranks
from sora.system import global_rng as rng
from sora.system.processes import give_memory_back
from sora.system.terminal import counted
from sora.training import state
from sora.training.callbacks.journal import Journal
from sora.training.faults.signals import StopFlag
from sora.training.logging.goodput import Phases
from sora.training.module import TrainingModule


class Checkpoints(Callback):
    """Restores at the start; saves every `every` steps, at the last step, and when a signal asks to stop. When too many steps in a row were
    skipped, it goes back to an earlier checkpoint, as often as the guard allows.

    Training goes on while a thread writes a copy of the state; only one save runs at a time. A failed save is printed and recorded, and
    training goes on to the next one, unless `patience` saves in a row have failed. The last save must succeed.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int,
        keep: int,
        keep_every: int,
        snapshots: int,
        patience: int,
        steps: int,
        seed: int,
        flag: StopFlag,
        journal: Journal,
        phases: Phases,
        resumed: TrainingState | None,
    ) -> None:
        if min(every, keep, patience) < 1:
            raise ValueError(f"checkpoint.every={every}, checkpoint.keep={keep} and checkpoint.patience={patience} must be at least 1")
        if snapshots < 0:
            raise ValueError(f"checkpoint.snapshots={snapshots} must be at least 0; it is how many there are at most")
        self._run, self._every, self._patience, self._refused = run, every, patience, 0
        self._home = _identity(run.folder)
        self._kept = {"keep": keep, "keep_every": keep_every, "snapshots": snapshots, "every": every}
        self._steps, self._seed, self._flag, self._journal, self._resumed = steps, seed, flag, journal, resumed
        self._begun: int | None = resumed.step if resumed else None
        self._saving: checkpoint.Saving | None = None
        self._writer = Writer()
        self._phases = phases
        self._first, self._noted = True, False
        self.stopped = False

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Before the model is sharded, agree with all ranks on a whole checkpoint to start from. Raises `Elsewhere` if it is another
        one."""
        prepared = self._resumed.step if self._resumed is not None else None
        found = confirmed(self._run.checkpoints, prepared, device=trainer.strategy.root_device)
        if found is not None and trainer.is_global_zero and (moved := checkpoint.set_aside(self._run.checkpoints, after=found)):
            self._run.event("set aside", step=found, damaged=[str(path) for path in moved])

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._flag.install()

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Before training: averages start at the weights, then both are filled from the checkpoint.
        pl_module.begin()
        if self._resumed is not None:
            state.restore(pl_module, self._resumed, source=checkpoint.folder_of(self._run.checkpoints, self._resumed.step))

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._first:
            return
        self._first = False
        # Not earlier: starting a loader draws from the global random state, depending on the number of workers.
        if self._resumed is None or not state.restore_random(self._resumed, rank=trainer.global_rank):
            rng.seed(self._seed, rank=trainer.global_rank)
        self._resumed = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        report = pl_module.report
        assert report is not None
        if pl_module.at_its_end:
            self._go_back(pl_module)
        pl_module.refuse_to_go_on()
        last = report.step >= self._steps
        if report.stop:
            self._flag.received = ranks.highest(self._flag.received or 0, pl_module.device)
        due = report.step % self._every == 0 or report.step == pl_module.counters.returned_at
        if report.stop or last or due or self._saving is not None:
            with self._phases.during("checkpoint"), self._flag.sheltered():
                if report.stop or last:
                    self._begin(pl_module)
                    self._end(pl_module, wait=True, must=True)
                elif due:
                    self._begin(pl_module)
                else:
                    self._end(pl_module, wait=False)
        if report.stop and not last:
            self.stopped = trainer.should_stop = True
        elif not last:
            self._flag.heed()

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        with self._flag.sheltered():
            self._end(pl_module, wait=True)

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ranks.several():  # several ranks cannot agree any more; unfinished files are removed at the next start
            with self._flag.sheltered():
                self._end(pl_module, wait=True)

    def _go_back(self, module: TrainingModule) -> None:
        """Restore the weights of an earlier checkpoint, if the guard allows it and there is one. The plan goes on: the packs in between are
        not repeated. A checkpoint that the run went back to before is only used again after a newer one was saved."""
        now = module.counters
        if now.returns >= module.guard.max_rollbacks:
            return
        with self._phases.during("checkpoint"), self._flag.sheltered():
            self._end(module, wait=True)  # so that the choice of checkpoints does not depend on writing speed
            begun = now.step - now.skipped_in_a_row
            tried = range(now.returned_to, now.returned_at + 1) if now.returns else range(0)
            # only regular ones: whether a signal left another one depends on chance
            fitting = lambda step: step % self._every == 0 and step <= begun and step not in tried  # noqa: E731
            found = agreed(self._run.checkpoints, device=module.device, only=fitting)
            if found is None:
                return
            path = checkpoint.folder_of(self._run.checkpoints, found)
            state.restore(module, checkpoint.load(path, verified=True), source=path)
        then = module.counters
        lost = now.step - found
        module.counters = replace(
            then,
            step=now.step,
            skipped=then.skipped + lost,
            skipped_in_a_row=0,
            returns=now.returns + 1,
            returned_to=found,
            returned_at=now.step,
        )
        self._journal.suspects.forget()
        if module.global_rank == 0:
            undone = checkpoint.undo(self._run.checkpoints, after=found)
            self._run.event("went back", step=now.step, to=found, left_out=lost, removed=undone)
            self._journal.say(
                f"step {now.step}: went back to the weights of step {found}; the packs of {counted(lost, 'step')} are left out"
            )
        self._begun = None

    def _begin(self, module: TrainingModule) -> None:
        """Copy the state of this step, and start a thread that writes it."""
        step = module.counters.step
        if self._begun == step:
            return
        self._end(module, wait=True)
        if _identity(self._run.folder) != self._home:  # a new folder of that name would get half a run
            raise ValueError(
                f"{self._run.folder} was moved or removed while the run trained in it, so step {step} is not saved; where the folder is "
                "there still, go on from its newest checkpoint with resume=FOLDER"
            )
        captured = state.capture(module, self._journal.facts)
        saving = checkpoint.Saving(self._run.checkpoints, captured, rank=module.global_rank, ranks=module.trainer.world_size, copied=True)
        self._writer.start(saving.write)
        self._saving, self._begun = saving, step  # not earlier: a save without a writer would be waited for

    def _end(self, module: TrainingModule, *, wait: bool, must: bool = False) -> None:
        """Commit the save that was begun, once every rank has written its part; `wait` waits for that."""
        saving = self._saving
        if saving is None:
            return
        if wait:
            self._writer.join()
        outcome = ranks.highest(self._writer.outcome, module.device)
        if outcome == Writer.BUSY:
            return
        self._writer.join()
        give_memory_back()  # the copies' memory, and that of steps of other sizes: least of it is in use between steps
        self._saving = None
        if module.global_rank == 0 and outcome == Writer.DONE:
            self._writer.run(lambda: saving.commit(**self._kept, report=self._told))
        refused = [rank for rank, (outcome,) in enumerate(ranks.joined([self._writer.outcome], module.device)) if outcome != Writer.DONE]
        if not refused:
            self._refused = 0
            self._note(checkpoint.step_of(saving.path) or 0)
            return
        self._refused += 1
        if module.global_rank == 0:
            saving.abandon()
        self._failed(saving.path, self._writer.error, refused=refused, must=must)

    def _told(self, text: str) -> None:
        """Report a problem with older checkpoints."""
        self._run.event("kept otherwise", reason=text)
        self._journal.say(text)

    def _note(self, step: int) -> None:
        """Record in run.json that the run has a checkpoint; if the disk is full, the next save tries again."""
        if not self._noted and ranks.first():
            with suppress(OSError):
                self._run.has_saved(step)
                self._noted = True

    def _failed(self, path: Path, error: Exception | None, *, refused: Sequence[int], must: bool) -> None:
        """Report a failed save, by the first rank in `refused`, which knows the cause; stop if it had to succeed, or too many have
        failed."""
        if error is not None and not isinstance(error, OSError):
            raise error
        step = checkpoint.step_of(path)
        no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if no_room else str(error or f"rank {refused[0]} could not write")
        if must or self._refused >= self._patience:
            often = f" (saves refused in a row: {self._refused}, checkpoint.patience={self._patience})" if self._refused > 1 else ""
            raise ValueError(
                f"{path.parent} could not take the checkpoint of step {step}: {reason}{often}. Earlier ones are as they were; "
                f"make room and continue with resume={self._run.folder}"
            ) from error
        if ranks.mine() == refused[0]:
            self._run.event("save failed", step=step, reason=reason, ranks=list(refused))
        self._journal.say(
            f"the checkpoint of step {step} could not be written: {reason}. Training goes on; the next try is in {self._every} steps"
        )


def _identity(folder: Path) -> tuple[int, int] | None:
    """The identity of a folder, independent of its name; None if it does not exist."""
    try:
        found = os.stat(folder)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class Writer:
    """Runs one function at a time in a thread, and keeps its outcome."""

    DONE, BUSY, REFUSED = 0, 1, 2

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self.error: Exception | None = None

    def start(self, work: Callable[[], object]) -> None:
        self.error = None
        self._thread = Thread(target=self.run, args=(work,), name="checkpoint")
        self._thread.start()

    def run(self, work: Callable[[], object]) -> None:
        """Run the function in this thread."""
        try:
            work()
        except Exception as error:  # any error: a thread that just died would pass for one that has written
            self.error = error

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def outcome(self) -> int:
        if self._thread is not None and self._thread.is_alive():
            return self.BUSY
        return self.DONE if self.error is None else self.REFUSED
