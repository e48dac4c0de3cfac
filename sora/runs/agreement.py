"""Which checkpoint a run continues from: the newest one that all ranks find whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from sora.runs import checkpoint
from sora.system import distributed as ranks


class Elsewhere(Exception):
    """Raised if training must start at another step than the one it was prepared for, because that one's checkpoint is damaged."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the run goes on from step {step}")
        self.step = step


def agreed(
    checkpoints: Path, *, device: torch.device, only: Callable[[int], bool] = lambda step: True, report: Callable[[str], object] = print
) -> int | None:
    """The newest step that `only` allows and whose checkpoint every rank finds whole; None if there is none. Every rank must call this.

    Every rank compares the list of files; sizes and hashes are checked by one rank per file. The rank that finds a damaged checkpoint
    reports it.
    """
    rank, count = (dist.get_rank(), dist.get_world_size()) if ranks.several() else (0, 1)
    seen = [step for path in checkpoint.listed(checkpoints) if (step := checkpoint.step_of(path)) is not None and only(step)]
    everyone = [set(steps) for steps in ranks.joined(seen, device)]
    for step in sorted(set.union(*everyone), reverse=True):
        path = checkpoint.folder_of(checkpoints, step)
        problem = damage(path, rank=rank, count=count)
        if problem is not None:
            report(f"passed over a damaged checkpoint{f' (rank {rank})' if count > 1 else ''}: {problem}")
        if not ranks.highest(int(problem is not None), device):
            return step
    return None


def confirmed(checkpoints: Path, prepared: int | None, *, device: torch.device) -> int | None:
    """The step that all ranks start at, which must be the one that this rank was `prepared` for. Every rank must call this.

    Raises:
        ValueError: there are checkpoints, but none is whole.
        Elsewhere: a rank was prepared for another step.
    """
    problems: list[str] = []
    found = agreed(checkpoints, device=device, report=problems.append)
    if found is None and ranks.highest(len(checkpoint.listed(checkpoints)), device):
        raise ValueError(f"no checkpoint in {checkpoints} is whole: {'; '.join(problems)}. To start again, choose another output folder")
    for problem in problems:
        print(problem)
    if ranks.highest(int(found != prepared), device):
        assert found is not None
        raise Elsewhere(found)
    return found


def damage(path: Path, *, rank: int, count: int) -> str | None:
    """What is wrong with a checkpoint, in the files that are rank `rank`'s part to check, of `count` ranks; None if nothing is."""
    try:
        mine = checkpoint.part_to_check(path, rank=rank, ranks=count)
        checkpoint.outline(path, sizes=mine)
        checkpoint.check(path, mine)
        if checkpoint.STATE in mine:
            checkpoint.state_of(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None
