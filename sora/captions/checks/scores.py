"""Flags of captions that the scores of a clip contradict."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sora.captions.checks.flags import CaptionChecks

_FAST = re.compile(
    r"(?i)\b(runs?|running|sprints?|races?|racing|rushes|dashes|gallops?|speeds?|speeding|jumps?|jumping|dances?|dancing|spins?|spinning"
    r"|flies|flying|rapidly|quickly|fast[- ]moving)\b"
)
_STILL = re.compile(
    r"(?i)\b(motionless|nothing moves|no (visible )?(motion|movement)|still image|static (image|picture|scene)|remains? still|unmoving)\b"
)
_CAMERA = re.compile(
    r"(?i)\bcamera (slowly |quickly |gently )?(pans?|tilts?|zooms?|moves|tracks?|follows|dollies|orbits|pushes|pulls|rotates|flies)\b"
    r"|\b(panning|tracking|dolly|zooming|drone|handheld|orbiting) (shot|camera|view)\b|\bzooms? (in|out)\b"
)
_FIXED = re.compile(
    r"(?i)\b(static|fixed|stationary|locked[- ]off|still) (camera|shot)\b|\bcamera (is |remains |stays )(static|still|fixed|stationary)\b"
)
_CUT = re.compile(
    r"(?i)\b((scene|shot|video|view) (cuts|switches|jumps) to|cuts? to (a|the|another)|next (scene|shot)|scene change|montage)\b"
)


def score_flags(dense: str, camera: str, scores: Mapping[str, float], checks: CaptionChecks, *, one_shot: bool) -> list[str]:
    """The flags of a caption by the scores `object_motion` and `camera_motion` of `sora curate`; a score that is not there gives none.

    camera: what the caption says of the camera. one_shot: whether the clip is known to be without a cut.
    """
    objects, moved = scores.get("object_motion"), scores.get("camera_motion")
    both = f"{dense} {camera}"
    most = max((value for value in (objects, moved) if value is not None), default=None)
    found = {
        "says_motion": most is not None and most < checks.still and _FAST.search(dense) is not None,
        "says_still": most is not None and most > checks.moving and _STILL.search(dense) is not None,
        "says_camera_moves": moved is not None and moved < checks.still and _CAMERA.search(both) is not None,
        "says_camera_still": moved is not None and moved > checks.moving and _FIXED.search(both) is not None,
        "says_cut": one_shot and _CUT.search(dense) is not None,
    }
    return [name for name, flagged in found.items() if flagged]
