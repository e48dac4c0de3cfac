"""The words of `metrics=`, by what is scored."""

from __future__ import annotations

from sora.evaluation.measures.clips import DISTANCES, MEASURES
from sora.evaluation.measures.continuation import WORD
from sora.evaluation.measures.motion import MOTION

OF_RUNS = ("loss", "remembered")  # words that say something of a run, beside the videos that it makes
KNOWN = {
    "videos": (*MEASURES, *DISTANCES, *MOTION, WORD),
    "diffusion": (*MEASURES, *DISTANCES, *MOTION, *OF_RUNS),
    "vae": ("reconstruction", *DISTANCES, *MOTION),
}
