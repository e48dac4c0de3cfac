"""The outlines of the world's shapes: the share of each pixel that a shape covers, and a judge that names a shape from its mask.

The judge works by analysis through synthesis. Each observed mask is brought to a common centre and area, and compared with blurred, turned
outlines made by the same steps; the shape whose outline leaves the least squared error over all frames wins. Blur is a free parameter of
the fit (one for a clip), so a soft square is still a square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import ndimage

GRID = 25  # samples on each side of a normalised mask
SPAN = 2.0  # its half width, in radii of the circle of equal area
BLURS = (0.06, 0.14, 0.22, 0.32, 0.44)  # standard deviations to try, in the same unit
STEP = 6.0  # degrees between the angles to try
MOST_TURNED = 300.0  # degrees, the most to try over a clip
FINE = 24.0  # pixels per radius at which outlines are drawn


class Outline(NamedTuple):
    """A shape at angle 0, in units of its radius: its extents, and the angle after which it repeats (0: any)."""

    wide: float  # half width
    above: float
    below: float
    reach: float  # the farthest point from its centre
    symmetry: float  # degrees


SQUARE = float(np.sqrt(np.pi) / 2)  # half side of the square as large as the unit circle
TRIANGLE = 1.25  # circumradius
STAR, HOLLOW = 1.35, 0.62  # tips and notches
CROSS, ARM = 1.15, 0.42  # half span and half arm width

OUTLINES: dict[str, Outline] = {
    "circle": Outline(1.0, 1.0, 1.0, 1.0, 0.0),
    "square": Outline(SQUARE, SQUARE, SQUARE, SQUARE * 2**0.5, 90.0),
    "triangle": Outline(TRIANGLE * 3**0.5 / 2, TRIANGLE, TRIANGLE / 2, TRIANGLE, 120.0),
    "star": Outline(STAR * float(np.sin(np.radians(72))), STAR, STAR * float(np.cos(np.radians(36))), STAR, 72.0),
    "cross": Outline(CROSS, CROSS, CROSS, float(np.hypot(CROSS, ARM)), 90.0),
}


def _edge(distance: ndarray) -> ndarray:
    """Coverage of a pixel whose centre lies `distance` pixels outside a straight edge."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _circle(x: ndarray, y: ndarray, radius: float) -> ndarray:
    return _edge(np.sqrt(x * x + y * y) - radius)


def _square(x: ndarray, y: ndarray, radius: float) -> ndarray:
    return _edge(np.abs(x) - SQUARE * radius) * _edge(np.abs(y) - SQUARE * radius)


def _triangle(x: ndarray, y: ndarray, radius: float) -> ndarray:
    inner = radius * TRIANGLE / 2
    side = np.abs(x) * (3**0.5 / 2) - 0.5 * y
    return _edge(side - inner) * _edge(y - inner)


def _star(x: ndarray, y: ndarray, radius: float) -> ndarray:
    tip, notch, wedge = STAR * radius, HOLLOW * radius, np.pi / 5
    angle = np.arctan2(x, -y)  # from the upward tip
    folded = np.abs((angle + wedge) % (2 * wedge) - wedge)
    far = np.sqrt(x * x + y * y)
    along, across = notch * float(np.cos(wedge)) - tip, notch * float(np.sin(wedge))  # from a tip to its notch
    return _edge((across * (far * np.cos(folded) - tip) - along * far * np.sin(folded)) / float(np.hypot(along, across)))


def _cross(x: ndarray, y: ndarray, radius: float) -> ndarray:
    x, y, span, arm = np.abs(x), np.abs(y), CROSS * radius, ARM * radius
    narrow_x, narrow_y = _edge(x - arm), _edge(y - arm)
    return _edge(x - span) * narrow_y + narrow_x * _edge(y - span) - narrow_x * narrow_y


_COVER = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross}


def coverage(shape: str, x: ndarray, y: ndarray, *, radius: float, angle: ndarray | float = 0.0) -> ndarray:
    """The share of each pixel that `shape` covers, 0..1, from analytic distances to its edges.

    x, y: pixels right of and below the shape's centre, any shapes that broadcast. radius: pixels. angle: radians, clockwise on the screen.
    """
    if np.any(angle):
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        x, y = cos * x + sin * y, cos * y - sin * x
    return _COVER[shape](x, y, radius)


def normalise(mask: Float[ndarray, "H W"], centre: tuple[float, float], area: float) -> Float[ndarray, "G G"]:
    """A soft mask moved so that `centre` (row, column) is in the middle, and scaled so that a circle of `area` pixels has radius 1."""
    radius = np.sqrt(area / np.pi)
    steps = np.linspace(-SPAN, SPAN, GRID) * radius
    places = np.meshgrid(centre[0] + steps, centre[1] + steps, indexing="ij")
    return ndimage.map_coordinates(mask, places, order=1, mode="constant")


def centroid(mask: Float[ndarray, "H W"]) -> tuple[float, float]:
    """Row and column of a soft mask's centre of mass."""
    rows, columns, total = mask.sum(1), mask.sum(0), mask.sum()
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def plateau(values: ndarray) -> float:
    """The level of a shape's inside: the 85th percentile of the values above a third of the highest ones."""
    if values.size == 0:
        return 0.0
    top = np.quantile(values, 0.98)
    return float(np.quantile(values[values > top / 3], 0.85)) if top > 0 else 0.0


@dataclass(frozen=True)
class ShapeFit:
    """The judge's result: a name, how much worse the next shape fits (0..1, relative), degrees turned clockwise, and every shape's error.

    wobble: the share of the named shape's error that vanishes if each frame may have its own angle, 0..1.
    """

    shape: str
    margin: float
    turn: float
    errors: dict[str, float]
    wobble: float


@cache
def _templates(shape: str) -> Float[ndarray, "B A G2"]:
    """The shape's normalised outlines at all trial blurs and angles."""
    symmetry = OUTLINES[shape].symmetry
    angles = np.arange(0.0, symmetry, STEP) if symmetry else np.zeros(1)
    half = int(FINE * 3.2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    rows = []
    for blur in BLURS:
        row = []
        for angle in angles:
            drawn = coverage(shape, x, y, radius=FINE, angle=float(np.radians(angle)))
            radius = np.sqrt(drawn.sum() / np.pi)
            soft = ndimage.gaussian_filter(drawn, blur * radius)
            soft = np.clip(soft / plateau(soft[soft > 0.02]), 0.0, 1.0)
            row.append(normalise(soft, centroid(soft), float(soft.sum())).ravel())
        rows.append(np.stack(row))
    return np.stack(rows).astype(np.float32)


def _turns(symmetry: float, span: int) -> Float[ndarray, "R"]:
    """Total turns in degrees to try over `span` frames, the smallest first: slow enough to be told apart despite the shape's symmetry."""
    most = min(0.25 * symmetry * span, MOST_TURNED)
    steps = np.arange(0.0, most + 1e-6, STEP)
    return np.concatenate([steps, -steps[1:]])


def name_shape(masks: Float[ndarray, "F G G"], when: Int[ndarray, "F"]) -> ShapeFit:
    """The shape whose outlines fit the normalised masks of one object best, turning at any constant rate.

    masks: as `normalise` makes them, at least one. when: the frame number of each, ascending.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    energy = np.square(flat).sum(1)
    span = int(when[-1] - when[0])
    errors, turned, free = {}, {}, {}
    for shape, outline in OUTLINES.items():
        templates = _templates(shape)
        blurs, angles, pixels = templates.shape
        product = (flat @ templates.reshape(-1, pixels).T).reshape(len(flat), blurs, angles)
        error = energy[:, None, None] - 2 * product + np.square(templates).sum(-1)  # F B A
        turns = _turns(outline.symmetry, span)
        # A turn shifts the errors along their angles, a phase in their Fourier series: all turns are one matrix product.
        waves = np.arange(angles // 2 + 1)[:, None, None]
        shifts = np.outer(turns, (when - when[0]) / max(span, 1)) / max(outline.symmetry, 1.0)  # R F
        phases = np.exp(2j * np.pi * waves * shifts)  # K R F
        total = (
            np.fft.irfft(phases @ np.moveaxis(np.fft.rfft(error, axis=2), 2, 0), n=angles, axis=0)
            if angles > 1
            else error.sum(0).T[:, None]
        )
        total = np.moveaxis(total, 0, 2)  # R B A
        best = int(total.min((1, 2)).argmin())
        errors[shape] = max(float(total[best].min()), 0.0) / (float(energy.sum()) + 1e-9)
        turned[shape] = float(turns[best])
        free[shape] = max(float(error.min(2).sum(0).min()), 0.0) / (float(energy.sum()) + 1e-9)
    first, second = sorted(errors, key=errors.__getitem__)[:2]
    margin, wobble = 1.0 - errors[first] / (errors[second] + 1e-12), 1.0 - free[first] / (errors[first] + 1e-12)
    return ShapeFit(shape=first, margin=margin, turn=turned[first], errors=errors, wobble=wobble)
