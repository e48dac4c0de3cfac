"""Prompts of the command line and of files, with the settings of each, and checks of the settings' values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import Number, number_in

if TYPE_CHECKING:
    from sora.gate.records import Record
    from sora.generation.generator import Request
    from sora.text.limits import CaptionLimit

FIELDS = ("prompt", "negative", "size", "seconds", "fps", "seed")
TEXT = ".txt"  # one prompt per line


NUMBERS = {
    "seconds": Number(0, most=1e6),
    "fps": Number(0, above=True, most=1e6),
    "area": Number(0, above=True, most=1e9),
    "seed": Number(whole=True),
    **dict.fromkeys(("samples", "steps", "input_frames"), Number(1, whole=True, most=1e6)),
    **dict.fromkeys(("budget", "enlarge"), Number(1, whole=True)),
    "clip_gb": Number(0, above=True, most=1e6),
    "first": Number(0, above=True, most=1),
    "shift": Number(0, above=True),
    # keys of `sora evaluate`, which checks the minimum of each itself
    **dict.fromkeys(("n", "keep", "trajectories", "neighbours"), Number(most=1e6)),
    **dict.fromkeys(("bootstrap", "permutations"), Number(most=1e5)),
}


@dataclass(frozen=True)
class Line:
    """One prompt with the settings of its line in a file. negative: None for the command's own."""

    prompt: str
    size: str | None = None
    seconds: float | None = None
    fps: float | None = None
    seed: int | None = None
    negative: str | None = None


def read_prompts(prompt: Any, file: str | Path | None) -> list[Line]:
    """The prompts of `prompt=` (one or a list) and of a file; ValueError if there are none, or with the line that cannot be read."""
    from sora.gate.records import refuse_half

    given = [] if prompt is None else [prompt] if isinstance(prompt, str | int | float) else list(prompt)
    lines = [Line(str(text)) for text in given]
    for line in lines:
        refuse_half(line.prompt, "prompt=")
    if file is not None:
        lines += read_file(Path(file))
    if not lines:
        raise ValueError('nothing to make: give prompt="…", prompt=[a,b] or prompts=FILE')
    return lines


def read_file(path: Path) -> list[Line]:
    """The prompts of a file: one on each line of a .txt, or the rows of a table in any supported format, with the keys of `FIELDS`.

    Raises:
        ValueError: the file cannot be read, or a row's values do not fit its keys; the message has the file's line number.
    """
    from sora.gate.records import TABLES, lines_of, read_bytes, records, refuse_half, text_of

    named, kind = f"prompts={path}", path.suffix.lower()
    if kind in TABLES:
        return [_line(record) for record in records(path, named, bare="prompt")]
    if kind != TEXT:
        raise ValueError(f"{named} is of no kind that is read: {TEXT} with a prompt on each line, or {', '.join(TABLES)}")
    text = text_of(read_bytes(path, named), named)
    _refuse_json(text, named)
    found = []
    for number, line in enumerate(lines_of(text, named), 1):
        refuse_half(line, f"{named} line {number}")
        if line.strip():
            found.append(Line(line.strip()))
    return found


def _refuse_json(text: str, named: str) -> None:
    """Raise ValueError for JSON in a file called .txt: every line with a brace would become a prompt."""
    from sora.gate.records import json_of

    first = next((line for line in text.splitlines() if line.strip()), "")
    for told, part, wanted in ((".jsonl", first, dict), (".json", text, list)):
        try:
            value = json_of(part, "")
        except ValueError:
            continue
        if isinstance(value, wanted):
            raise ValueError(f"{named} holds JSON; call it {told}, and its keys are read")


def _line(record: Record) -> Line:
    """A row of a table as a prompt; an empty cell counts as not given where the table has only text."""
    from sora.gate.records import refuse_half

    place = record.place
    unknown = [name for name in record.values if name not in FIELDS]
    if unknown:
        raise ValueError(f"{place}: it has {unknown[0]!r}; a line may have {', '.join(FIELDS)}")
    values = {name: value for name, value in record.values.items() if value is not None and (record.typed or value.strip())}
    if "prompt" not in values:
        raise ValueError(f"{place}: it has no prompt; a line may have {', '.join(FIELDS)}")
    for name in ("prompt", "negative", "size"):
        if name in values and not isinstance(values[name], str):
            raise ValueError(f"{place}: {name}={values[name]!r} is no text")
        refuse_half(values.get(name, ""), f"{place}: {name}")
    if "size" in values:
        _check_size(values["size"], place)
    for name in ("seconds", "fps", "seed"):
        if name in values:
            value = values[name] if record.typed else number_in(values[name], otherwise=values[name])
            values[name] = NUMBERS[name].of(value, f"{place}: {name}")
    return Line(**values)


def _check_size(size: str, place: str) -> None:
    from sora.patches.geometry import size_of

    try:
        size_of(size, area=1.0, multiple=(1, 1))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def negative_of(said: Any) -> str:
    """The negative prompt of a command: one text for all prompts, "" if there is none."""
    from sora.gate.records import refuse_half

    if said is not None and not isinstance(said, str | int | float):
        raise ValueError(f"negative={list(said)} is no text; one negative prompt holds for all, a prompts= file may give each its own")
    text = "" if said is None else str(said)
    refuse_half(text, "negative=")
    return text


def refuse_unguided(negative: str, lines: Sequence[Line], guidance: Mapping[str, Any], chosen: str | None = None) -> None:
    """Raise ValueError for a negative prompt, or guidance settings, without guidance: they would change nothing.

    chosen: the name of the chosen guidance option, which must agree with its scale.
    """
    if chosen == "none" and guidance.get("scale") != 1:
        raise ValueError(f"guidance=none guides nothing, and guidance.scale={guidance.get('scale')} does; leave one of them out")
    if idle := next((key for key in ("interval", "rescale") if guidance.get("scale") == 1 and guidance.get(key)), None):
        raise ValueError(f"guidance.{idle}={guidance[idle]} has no effect at guidance.scale=1, where nothing is guided; leave it out")
    asked = next((text for text in (negative, *(line.negative for line in lines)) if text), None)
    if asked is not None and guidance.get("scale") == 1:
        raise ValueError(
            f"negative={asked!r} has no effect at guidance.scale=1, where nothing leads away from it; set guidance.scale=4, or leave it out"
        )


def refuse_idle(config: Mapping[str, Any], said: Collection[str], lines: Sequence[Line]) -> None:
    """Raise ValueError for a key of `sora sample` on the command line that would have no effect on any sample. said: the keys as typed."""
    from sora.patches.geometry import exact

    asked = [key for key in said if key in config and config[key] is not None]
    for key in FIELDS[1:]:
        if key in asked and all(getattr(line, key) is not None for line in lines):
            raise ValueError(f"{key}={config[key]} has no effect: every line of prompts={config['prompts']} sets its own; leave it out")
    if "area" in asked and all(exact(str(line.size or config["size"])) for line in lines):
        raise ValueError(f"area={config['area']} has no effect: every size is said in pixels already; leave it out, or give size=16:9")
    if "input_frames" in asked and config["input_frames"] != 1 and config["input"] is None:
        raise ValueError(f"input_frames={config['input_frames']} has no effect without input=, the video that they are of; give both")
    if config["replace"] and config["output"] is None:
        raise ValueError("replace=true has no effect without output=: a folder of the run that is free is taken; name one, or leave it out")


def with_cuts(requests: Sequence[Request], limits: Sequence[CaptionLimit]) -> tuple[list[Request], list[str]]:
    """The requests, each with the words that no text encoder reads of it, and lines for people about these words."""
    from sora.text.limits import cuts

    told: list[str] = []
    lost: dict[str, str] = {}
    for name in ("prompt", "negative"):
        texts = list(dict.fromkeys(getattr(request, name) for request in requests))
        told += [cut.line(f"{name}s") for cut in cuts(limits, texts)]
        for limit in limits:
            found = zip(texts, limit.of(texts), strict=True)
            lost |= {text: cut if len(cut) > len(lost.get(text, "")) else lost[text] for text, cut in found if cut}
    made = []
    for request in requests:
        both = {"prompt": request.prompt, "negative": request.negative}
        made.append(replace(request, cut={name: lost[text] for name, text in both.items() if text in lost}))
    return made, told
