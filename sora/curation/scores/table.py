"""The names of all cheap scores: what each one measures, its range and unit, and which end is wanted. No other file names them twice."""

from __future__ import annotations

from typing import Literal, NamedTuple

UNBOUNDED = float("inf")


class CheapScore(NamedTuple):
    """The description of a score of a clip.

    meaning: a sentence for help pages and reports. high: the greatest possible value; the least is 0 for all. unit: of the value; "" for a
    share. better: which end a curator usually wants.
    """

    meaning: str
    high: float
    unit: str
    better: Literal["lower", "higher", "neither"]


# What every clip has, without any stage that scores: the rules may be about these, too.
BASIC_SCORES = {"seconds": "Seconds of the clip.", "height": "Rows of pixels.", "width": "Columns of pixels.", "fps": "Frames a second."}
CHEAP_SCORES: dict[str, CheapScore] = {
    "letterbox": CheapScore("Share of the height that black bars above and below take.", 1.0, "", "lower"),
    "pillarbox": CheapScore("Share of the width that black bars to the left and right take.", 1.0, "", "lower"),
    "border": CheapScore(
        "Share of the picture in a still frame of any colour around the moving part, black bars included.", 1.0, "", "lower"
    ),
    "logo": CheapScore(
        "Share of the picture under outlines that stand still while the rest moves; 0 where most of the picture stands still, "
        "since a logo cannot be told there.",
        1.0,
        "",
        "lower",
    ),
    "sharpness": CheapScore(
        "Mean square of the Laplacian of luma within the bars, at the analysis size, so that it compares across resolutions.",
        UNBOUNDED,
        "grey levels squared",
        "higher",
    ),
    "luma": CheapScore("Mean luma within the bars.", 1.0, "of white", "neither"),
    "clipped_black": CheapScore("Share of pixels within the bars at or next to black.", 1.0, "", "lower"),
    "clipped_white": CheapScore("Share of pixels at or next to white.", 1.0, "", "lower"),
    "flash": CheapScore("Largest change of the mean luma that is undone within a third of a second.", 1.0, "of white", "lower"),
    "frozen": CheapScore("Share of frames in runs of equal frames that last half a second or more.", 1.0, "", "lower"),
    "repeated": CheapScore("Share of frames that equal the frame before them, in runs too short to be frozen.", 1.0, "", "lower"),
    "telecine": CheapScore(
        "Strength of a pattern of period five in the changes from frame to frame, as 3:2 pulldown leaves.", 1.0, "", "lower"
    ),
    "camera_motion": CheapScore(
        "Mean speed of the picture as a whole: shift, rotation and zoom that fit most of the optical flow.",
        UNBOUNDED,
        "short sides per second",
        "neither",
    ),
    "object_motion": CheapScore(
        "Mean speed of the optical flow that the motion of the camera leaves unexplained, over the whole picture.",
        UNBOUNDED,
        "short sides per second",
        "neither",
    ),
    "text": CheapScore("Share of the picture in lines of text: wide bands of thin strokes with strong contrast.", 1.0, "", "lower"),
    "noise": CheapScore(
        "Standard deviation of the noise over time in plain places, at the analysis size; below half a level it reads as 0.",
        UNBOUNDED,
        "grey levels",
        "lower",
    ),
}
