"""The suggested next command in the last line that a command prints: it leads from a folder of videos to samples without a manual."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from sora.config.command_line.commands import command, option_words
from sora.config.compose import config_dir, groups
from sora.patches.geometry import Geometry
from sora.system.files import called

if TYPE_CHECKING:
    from sora.data.index.index import Index

CROPS = Geometry((4, 8, 8))  # the stride of every VAE in conf/vae
SMALL = "laptop"  # the experiments for small clips on a CPU; the defaults are for GPUs


def after_prepare(folder: Path, index: Index) -> str:
    """The command that trains a VAE on the clips of an index, of its selection if it has one: with the default crops if clips are that
    large, else with the crops for small clips, or smaller ones."""
    chosen = {} if index.selection is None else {"data__selection": index.selection.name}
    given: dict[str, Any] = {"data__folders": [folder], **chosen, "output": outputs_beside(folder) / f"{called(folder)}_vae"}
    small = f"experiment={SMALL}_vae"
    for kind, shapes in (("task=vae", _option("plan", "crops").shapes), (small, _option("plan", f"{SMALL}_vae").shapes)):
        fitting = [list(shape) for shape in shapes if _some_fit(index, *shape)]
        if fitting:
            return command("train", kind, **({} if len(fitting) == len(shapes) else {"plan__shapes": fitting}), **given)
    smaller = _crops_within(index, shapes[0])
    return command("train", small, **({"plan__shapes": smaller} if smaller else {}), **given)


def outputs_beside(dataset: Path) -> Path:
    """The folder for results of a dataset: outputs/ in the working directory, or beside the dataset if that is the working directory."""
    there = os.path.realpath(dataset)
    inside = Path(os.path.realpath(".")).is_relative_to(there)
    return Path(os.path.relpath(Path(there).parent / "outputs")) if inside else Path("outputs")


def _crops_within(index: Index, shape: Sequence[int]) -> list[list[int]]:
    """The crop within this shape that half of the clips contain, by its pixels, and one frame of it; none for clips of a few pixels."""
    sizes = zip((index.frames, index.heights, index.widths), shape, strict=True)
    frames, heights, widths = CROPS.largest(*(np.minimum(of_clips, most) for of_clips, most in sizes))
    rows = np.flatnonzero((heights > 0) & (widths > 0))
    if not len(rows):
        return []
    middle = rows[np.argsort((frames * heights * widths)[rows], kind="stable")[(len(rows) - 1) // 2]]
    height, width = int(heights[middle]), int(widths[middle])
    return [[length, height, width] for length in dict.fromkeys((int(frames[middle]), 1))]


def _some_fit(index: Index, frames: int, height: int, width: int) -> bool:
    """Whether a clip is at least as large as a crop."""
    return bool(((index.frames >= frames) & (index.heights >= height) & (index.widths >= width)).any())


def after_vae(run: Path, folders: Sequence[str]) -> str:
    """The command that encodes the first of the datasets that the VAE was trained on."""
    return command("encode", vae=run, data=folders[0])


def after_encode(vae: Path, folder: Path, *, shapes: Any, text: DictConfig) -> str:
    """The command that trains a network on latents of these shapes (clips, 3), with the text encoder of the captions."""
    small = _option("plan", SMALL).budget
    patch = _option("patches", _default("diffusion", "patches")).size
    fits = int((np.asarray(shapes) // list(patch)).prod(axis=1).max(initial=0)) <= small
    words = option_words("text", text, groups([config_dir()])["text"])
    chosen = [*([f"experiment={SMALL}"] if fits else []), *(words if words != (f"text={_default('diffusion', 'text')}",) else ())]
    return command("train", *chosen, vae=vae, data__folders=[folder], output=outputs_beside(folder) / called(folder))


def after_diffusion(run: Path, **given: Any) -> str:
    """The command that samples from a run. given: more keys with their values, such as own modules that it needs."""
    return command("sample", "prompt=what your captions describe", checkpoint=run, **given)


def after_captioner(run: Path, folders: Sequence[str]) -> str:
    """The command that scores a captioner on the first of the datasets that it was trained on."""
    return command("evaluate", checkpoint=run, data=folders[0])


def after_samples(folder: Path, run: Path) -> str:
    """The command for the page that shows the samples: the run's page if they lie in the run, else their own."""
    return command("report", run if folder.absolute().is_relative_to(run.absolute() / "samples") else folder)


def _option(group: str, name: str) -> Any:
    return OmegaConf.load(config_dir() / group / f"{name}.yaml")


def _default(task: str, group: str) -> str:
    """The option of a group that a task chooses by default."""
    chosen = [item for item in _option("task", task).defaults if isinstance(item, DictConfig)]
    return next(str(option) for item in chosen for key, option in item.items() if str(key).lstrip("/") == group)
