"""What one kind of training needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """All that one kind of training needs: the task, the steps to train on, the hashes of what it depends on, and the unit of its log.

    scales: learning-rate scales of single parameters, by their names in the task (`sora.dit.mup`). usual: the usual size and length of the
    training clips, for sampling later (`sora.assembly.usual`). sets: for each dataset the sets of captions in force, with their hashes.
    files: texts that the folder of a new run gets, by name.
    """

    task: Any
    steps: Any
    depends: Mapping[str, str]
    unit: str
    vae: Path | None = None
    scales: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    sets: Sequence[Mapping[str, str]] = ()
    files: Mapping[str, str] = field(default_factory=dict)
