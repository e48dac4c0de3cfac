"""The usual clip that a run trains on, for sampling from it: pixels of a frame, frames per second, seconds of a clip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import islice, product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from sora.assembly.data import Planned
    from sora.runs.run import Run

KEYS = ("area", "fps", "seconds")  # the facts, and the keys of `sora sample` that override them
LOOKED_AT = 4096  # clips, spread over the whole dataset
SECONDS = 2.0  # length of a clip if neither the run nor the user gives one
TRIED = 64  # combinations of folders in which an old run's datasets are looked for


def usual_of(planned: Planned, *, stride: Sequence[int]) -> dict[str, float]:
    """The usual clip of the last stage of a plan: the medians of the pixels of a frame ("area") and of "seconds", and the most common
    frames per second ("fps"). It is taken over the videos, or, if there are none, over the images, which last 0 seconds. stride: of the
    VAE."""
    import numpy as np

    from sora.patches.geometry import Geometry

    clips, stage = planned.plan.clips, planned.plan.stages[-1]
    rows = np.unique(np.linspace(0, clips.starts[-1] - 1, min(LOOKED_AT, clips.starts[-1])).round().astype(np.int64))
    measured = clips.measured(rows, stage.limits)
    fits = measured.reasons == 0
    if not fits.any():
        return {}
    frames, height, width = Geometry(stride, planned.patchifier.size).pixels(*measured.grids[fits].T)
    return summary(1 if stage.images == 1 else frames, height * width, rates_of(planned, rows[fits]))


def rates_of(planned: Planned, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Frames per second of clips in training, by their rows."""
    import numpy as np

    from sora.data.plan.clips import gathered

    clips = planned.plan.clips
    if planned.online:
        return clips.rates(rows)
    return np.asarray(gathered([item.index.fps for item in planned.data.latents], clips.starts, rows), dtype=np.float64)


def summary(frames: Any, area: Any, fps: Any) -> dict[str, float]:
    """`usual_of` clips, from arrays of their frames, pixels of a frame and frames per second."""
    import numpy as np

    frames = np.broadcast_to(frames, np.shape(area))
    moving = frames > 1
    if moving.any():
        frames, area, fps = frames[moving], area[moving], fps[moving]
    rates, counts = np.unique(fps, return_counts=True)
    middle = partial(np.quantile, q=0.5, method="lower")  # a value that occurs in training, not a mean of two
    seconds = float(middle(frames / fps)) if moving.any() else 0.0
    return {"area": float(middle(area)), "fps": float(rates[counts.argmax()]), "seconds": seconds}


def told(run: Run, wanted: Collection[str]) -> dict[str, float]:
    """The facts of a run that are `wanted`: from its record, or, for a run that an older version started, from its datasets.

    Raises ValueError, naming the keys of `sora sample` to give, if neither has them.
    """
    kept = run.info.get("usual")
    if not wanted:
        return {}
    if isinstance(kept, Mapping) and all(isinstance(kept.get(name), int | float) for name in wanted):
        return {name: float(kept[name]) for name in wanted}
    try:
        return asked_of_data(run)
    except ValueError as error:
        if set(wanted) == {"seconds"}:
            print(f"seconds={SECONDS:g}: this run does not say how long its clips are")
            return {"seconds": SECONDS}
        keys = " ".join(f"{name}=…" for name in KEYS if name in wanted)
        raise ValueError(f"{run.folder} does not say what sizes and rates it was trained on, and {error}; give {keys}") from None


def asked_of_data(run: Run) -> dict[str, float]:
    """`usual_of` the datasets that a run was trained on, which are found by their fingerprints. Raises ValueError if they are not found."""
    import numpy as np

    from sora.assembly.data import as_trained
    from sora.runs.places import candidates, foreign

    data = run.config.get("data") or {}
    named = [name for name in data.get("folders") or [data.get("folder")] if isinstance(name, str)]
    if not named:
        raise ValueError("its config.yaml names no dataset")
    seen = [[path for path in candidates(run, name) if (path / "dataset.json").is_file()] for name in named]
    places = [[path for path in found if run.may_read(path)] for found in seen]
    for name, found, there in zip(named, places, seen, strict=True):
        if there and not found:
            raise foreign(run, "data.folders", name, there)
        if not found:
            raise ValueError(f"its dataset {name} is not to be found from here")
    for folders in islice(product(*places), TRIED):
        indexes = as_trained(run, folders)
        if indexes is not None and same_data(run, indexes):
            break
    else:
        raise ValueError(f"what lies at {', '.join(str(found[0]) for found in places)} is not the dataset that it was trained on")
    frames, area, fps = (
        np.concatenate(each) for each in zip(*((index.frames, index.heights * index.widths, index.fps) for index in indexes), strict=True)
    )
    if ladder := data.get("areas"):  # data=videos: sizes and rates that clips were trained at
        area = np.sort(ladder)[np.maximum(np.searchsorted(np.sort(ladder), area, side="right") - 1, 0)]
        shown = np.minimum(fps, data["rate"] or np.inf)
        frames, fps = np.floor((frames - 1) * shown / fps + 1e-6) + 1, shown
    return summary(frames, area, fps)


def same_data(run: Run, indexes: Sequence[Any]) -> bool:
    """Whether these indexes hold the clips and captions that a diffusion run depends on; true for a run that records none."""
    from sora.data.loading.caption_checks import identity

    depends, data = run.info.get("depends") or {}, run.config.get("data") or {}
    if "data" not in depends:
        return True
    stored = not str(data.get("_target_")).endswith("VideoData")
    texts = [depends.get("text", "")] * len(indexes) if stored or data.get("text_cache") else []
    return identity(indexes, *([depends.get("vae", "")] if stored else []), *texts) == depends["data"]
