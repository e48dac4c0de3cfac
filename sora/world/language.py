"""The world's language: names of colours, shapes and directions, captions of scenes, and parsing of captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sora.world.judge.adherence import EVENTS, Facts
from sora.world.judge.silhouettes import OUTLINES

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 222, 40),
    "green": (40, 180, 60),
    "cyan": (40, 205, 215),
    "blue": (45, 85, 230),
    "purple": (145, 55, 205),
    "pink": (245, 90, 175),
}
SHAPES: tuple[str, ...] = tuple(OUTLINES)
DIRECTIONS: tuple[str, ...] = ("left", "right", "up", "down")
TURNS: tuple[str, ...] = ("clockwise", "anticlockwise")

SIZES = (("small", 0.155), ("medium-sized", 0.205), ("large", 1.0))  # the largest radius of each, in short sides
SPEEDS = (("slowly", 0.22), ("steadily", 0.5), ("quickly", float("inf")))  # the largest speed of each, in short sides a second
SPINS = (("slowly", 60.0), ("steadily", 150.0), ("quickly", float("inf")))  # the largest speed of each, in degrees a second
TIMES = ("", "once", "twice", "three times", "four times", "five times")
WAYS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
WAYS |= {turn: turn for turn in TURNS}

_SHORT = {
    "linear": ("moving {way}", "moves {way}", "sliding {way}", "going {way}"),
    "bounce": ("bouncing {way}", "bounces {way}"),
    "rotate": ("turning {way}", "rotates {way}"),
    "occlude": ("moving {way} behind a bar", "moves {way} and passes behind a bar"),
    "still": ("at rest", "resting"),
}
_CAMERA = ("the camera pans {way} past {things}", "camera pans {way} over {things}")
_PICTURE = ("a picture of {things}", "an image of {things}")

_DENSE = {
    "linear": "moves {speed} {way}",
    "bounce": "is thrown {speed} {way} and bounces off the floor {times} under gravity",
    "rotate": "turns {speed} {way} about its centre",
    "occlude": "moves {speed} {way}, passes behind {bar}, is hidden for a moment and comes out on the other side",
    "still": "rests",
}


def word(value: float, table: Sequence[tuple[str, float]]) -> str:
    """The first word of a table whose bound is at least the value."""
    return next(name for name, bound in table if value <= bound)


def place(x: float, y: float) -> str:
    """A phrase for the position of a point in the unit square."""
    row = ("upper", "", "lower")[min(int(y * 3), 2)]
    column = ("left", "", "right")[min(int(x * 3), 2)]
    return (
        " ".join(part for part in (row, column) if part)
        if row and column
        else {"upper": "top", "lower": "bottom"}.get(row, column or "centre")
    )


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def short_caption(facts: Facts, wording: int) -> str:
    """A vague caption: colour, shape and direction, nothing else. wording: any number, which chooses among phrasings."""
    things = [_article(f"{colour} {shape}") for colour, shape in zip(facts.colours, facts.shapes, strict=True)]
    if facts.motion is None:
        return _PICTURE[wording % len(_PICTURE)].format(things=" and ".join(things))
    if facts.motion == "pan":
        return _CAMERA[wording % len(_CAMERA)].format(way=facts.direction, things=" and ".join(things))
    phrases = _SHORT[facts.motion]
    if facts.motion == "still":
        return f"{' and '.join(things)} {phrases[wording % len(phrases)]}"
    done = [phrases[wording % len(phrases)].format(way=way) for way in facts.directions]
    return " and ".join(f"{thing} {does}" for thing, does in zip(things, done, strict=True))


def dense_caption(facts: Facts, *, places: Sequence[tuple[str, str]], bounces: int, bar: str) -> str:
    """An exact caption of everything in the scene.

    places: where each object starts and ends. bounces: how often the floor is touched. bar: the shade of the bar, in a scene with one.
    """
    kinds = zip(facts.sizes, facts.colours, facts.shapes, strict=True)
    things = [_article(f"{size} {colour} {shape}") for size, colour, shape in kinds]
    behind = f"in front of {_article(str(facts.background))} background"
    if facts.motion is None:
        return f"A still picture of {' and '.join(things)} {behind}. {_stands(places)}"
    if facts.motion == "pan":
        camera = f"The camera pans {facts.speeds[0]} {WAYS[str(facts.direction)]} past {' and '.join(things)}"
        return f"{camera} {behind}. Nothing else moves. {_travels(places, ('is first seen', 'last seen'))}"
    phrase = _DENSE[facts.motion]
    stand = _article(f"{'upright' if facts.direction in ('left', 'right') else 'level'} {bar} bar")
    times = TIMES[min(bounces, len(TIMES) - 1)]
    does = [
        phrase.format(speed=speed, way=WAYS.get(str(way), ""), times=times, bar=stand)
        for speed, way in zip(facts.speeds, facts.directions, strict=True)
    ]
    story = " and ".join(f"{thing} {doing}" for thing, doing in zip(things, does, strict=True))
    rest = _stands(places) if facts.motion in ("still", "rotate") else _travels(places, ("starts", "ends"))
    end = "Nothing moves." if facts.motion == "still" else "The camera stands still."
    return f"{_capital(story)}, {behind}. {rest} {end}"


def _names(count: int) -> tuple[str, ...]:
    return ("it",) if count == 1 else ("the first", "the second", "the third")[:count]


def _stands(places: Sequence[tuple[str, str]]) -> str:
    spots = [f"{name} is at the {start}" for name, (start, _) in zip(_names(len(places)), places, strict=True)]
    return _capital("; ".join(spots)) + "."


def _travels(places: Sequence[tuple[str, str]], verbs: tuple[str, str]) -> str:
    begins, ends = verbs
    ways = [
        f"{name} {begins} at the {start} and {ends} at the {end}" if start != end else f"{name} {begins} and {ends} at the {start}"
        for name, (start, end) in zip(_names(len(places)), places, strict=True)
    ]
    return _capital("; ".join(ways)) + "."


_ALIASES = {"ball": "circle", "disc": "circle", "disk": "circle", "box": "square", "plus": "cross", "violet": "purple", "magenta": "pink"}
_COLOUR = "|".join([*PALETTE, "violet", "magenta"])
_SHAPE = "|".join([*SHAPES, "ball", "disc", "disk", "box", "plus"])
_THING = re.compile(rf"(?:\b(small|medium-sized|large) )?\b({_COLOUR}) ({_SHAPE})s?\b")
_VERBS = r"(?:mov|go(?:es|ing)|slid|drift|roll|bounc|glid|fall|ris|turn|rotat|spin|throw|travel|fl(?:y|ies)|head|pan|pass)\w*"
_WAY = re.compile(
    rf"\b{_VERBS}(?: \w+ly)?(?: (?:to|towards) the)? (left|right|up|down|clockwise|anticlockwise|counter-?clockwise)(?:wards?)?\b"
)
_CAMERA_WAY = re.compile(r"\bcamera (?:pan|mov|turn)\w*(?: \w+ly)?(?: to the)? (left|right|up|down)(?:wards?)?\b")
_SPEED = re.compile(r"\b(slowly|steadily|quickly)\b")
_BACKGROUND = re.compile(r"\b(?:in front of|on|over|across) an? ([a-z -]+?) background\b")
_SIGNS = (  # signs of each motion; the first match counts
    ("bounce", re.compile(r"\bbounc")),
    ("occlude", re.compile(r"\bbehind\b|\bhidden\b")),
    ("rotate", re.compile(r"\b(?:turn|rotat|spin)")),
    ("linear", _WAY),
    ("still", re.compile(r"\bat rest\b|\brest(?:s|ing)\b|\bnothing moves\b|\bstill\b")),
)
_PICTURED = re.compile(r"\b(?:picture|image|photo) of\b")


def parse(caption: str) -> Facts:
    """The checkable content of a caption: exact for both kinds of world captions, and best effort for free text."""
    text = " ".join(caption.lower().split())
    found = list(_THING.finditer(text))
    if not found:
        return Facts()
    colours = tuple(_ALIASES.get(match[2], match[2]) for match in found)
    shapes = tuple(_ALIASES.get(match[3], match[3]) for match in found)
    camera, pictured, behind = _CAMERA_WAY.search(text), _PICTURED.search(text), _BACKGROUND.search(text)
    ends = [match.start() for match in found[1:]] + [len(text)]
    spans = [text[match.end() : end] for match, end in zip(found, ends, strict=True)]
    if camera:
        motion, ways = "pan", [camera[1]] * len(found)
        spans = [text[: found[0].start()]] * len(found)
    elif pictured:
        motion, ways = None, [None] * len(found)
    else:
        motion = next((name for name, sign in _SIGNS if sign.search(text)), None)
        ways = [_reading(_WAY, span) for span in spans]
    if motion not in ("pan", "still", None) and ways and ways[-1]:  # "a red circle and a blue square move left"
        ways = [way or ways[-1] for way in ways]
    dense = behind is not None
    return Facts(
        count=len(found),
        colours=colours,
        shapes=shapes,
        motion=motion,
        directions=tuple(way.replace("counter-", "anti").replace("counter", "anti") if way else None for way in ways),
        event=EVENTS.get(motion or ""),
        sizes=tuple(match[1] for match in found) if dense else (),
        speeds=tuple(_reading(_SPEED, span) for span in spans) if dense else (),
        background=behind[1] if behind else None,
    )


def _reading(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None
