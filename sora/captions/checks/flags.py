"""The flags that captions may have, and the settings of the checks that give them. A flag is a mark for people and rules: nothing is
removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sora.gate.sizes import Number

FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "refusal": "the model declines instead of describing",
        "about_frames": "it speaks of frames, images or the prompt instead of what they show",
        "says_motion": "it says that something moves fast, and the scores say that nothing moves",
        "says_still": "it says that nothing moves, and the scores say that much does",
        "says_camera_moves": "it says that the camera moves, and the scores say that it stands still",
        "says_camera_still": "it says that the camera stands still, and the scores say that it moves",
        "says_cut": "it speaks of a cut, and the clip is one shot",
        "disagrees": "a second pass says something else",
        "language": "it is in another language",
        "repetition": "it repeats itself",
        "same_sentence": "short and dense are the same",
        "same_as_others": "many clips have the very same caption",
        "too_short": "dense has too few words",
        "too_long": "short or dense has too many words",
        "cut": "the answer ended at max_tokens",
        "steering": "characters that steer a terminal or the direction of text were taken out",
        "repaired": "the answer was no JSON of the asked form, and could be read all the same",
    }
)  # the gravest first


@dataclass(frozen=True, kw_only=True)
class CaptionChecks:
    """The settings of the checks.

    dense_words: least and most words of the dense caption. short_words: most words of the short one. repeated: the largest share of three
    words in a row that stood before. same: clips that may have the very same caption. agreement: the least share of words that both passes
    have. language: two letters, such as en (None: not checked; it takes the package py3langid). still, moving: motion scores below and
    above which a clip stands still or moves, in short sides a second.
    """

    dense_words: tuple[int, int]
    short_words: int
    repeated: float
    same: int
    agreement: float
    language: str | None
    still: float
    moving: float

    def __post_init__(self) -> None:
        if len(self.dense_words) != 2 or not 0 <= self.dense_words[0] <= self.dense_words[1]:
            raise ValueError(f"checks.dense_words={list(self.dense_words)} is not [least, most]")
        Number(1, whole=True).of(self.short_words, "checks.short_words")
        Number(1, whole=True).of(self.same, "checks.same")
        for name in ("repeated", "agreement"):
            Number(0, most=1).of(getattr(self, name), f"checks.{name}")
        if not 0 <= self.still <= self.moving:
            raise ValueError(f"checks.still={self.still} and checks.moving={self.moving} are not in this order")
