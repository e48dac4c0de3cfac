"""What a captioner is asked: the texts of an option, with a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sora.captions.captioner import WindowCaption
from sora.captions.wording import quoted


@dataclass(frozen=True, kw_only=True)
class CaptionPrompt:
    """The texts that a model is given. version: counts up when a text changes; it names the set of captions. system: who the model is.
    text: behind the frames. summary: behind the captions of windows. hint: behind the text, where the clip's own caption is given; it has
    {caption} where the caption stands, in quotes."""

    version: str
    system: str
    text: str
    summary: str
    hint: str

    def __post_init__(self) -> None:
        if self.hint.count("{caption}") != 1:
            raise ValueError("prompt.hint has {caption} once, where the clip's own caption stands")

    def identity(self) -> dict[str, Any]:
        return asdict(self)

    def asked(self, *, hint: str = "") -> str:
        """The text behind the frames. hint: a caption of the clip, "" for none."""
        said = self.text.strip()
        return f"{said}\n\n{self.hint.strip().replace('{caption}', quoted(hint))}" if hint else said

    def summing(self, windows: Sequence[WindowCaption]) -> str:
        """The text of a request for one caption from those of windows."""
        lines = [f"<{one.start:.1f} to {one.end:.1f} seconds> {quoted(one.fields.dense, most=6_000)}" for one in windows]
        return "\n".join([*lines, "", self.summary.strip()])
