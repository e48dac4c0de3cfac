"""Small datasets of coloured clips, captioners of tests, and a recaptioning of them."""

import json
from contextlib import contextmanager

import numpy as np

from sora.captions.captioner import CaptionFields, CaptionResult
from sora.captions.captioners.chat import ChatCaptioner, ChatForm
from sora.captions.frames import FrameTaking
from sora.captions.prompts import CaptionPrompt
from sora.captions.recaptioning import Recaption, RecaptionSettings
from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.system.guarded_pool import GuardedPool, Hold
from sora.video.files import encode
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace

TAKING = {"count": 4, "most": 8, "every_seconds": 4.0, "side": 32, "window_seconds": None, "rate": 8.0}


def serial(function, items):
    return GuardedPool(0, Hold(seconds=1.0, memory_gb=1.0)).as_done(function, items)


@contextmanager
def quiet(what, total):
    yield lambda done: None


def clip(number, frames=4):
    """Frames of one colour that differs by number, with a square that moves."""
    found = np.full((frames, 32, 32, 3), 40 + 9 * (number % 20), np.uint8)
    found[..., number % 3] = 200
    for place in range(frames):
        found[place, 4:12, 2 * place : 2 * place + 8] = number
    return found


def dataset(folder, count=12, *, per_shard=4, frames=4, fps=4.0):
    """A dataset of `count` clips, `per_shard` in each shard."""
    content = [encode(clip(number, frames), fps, lossless=True) for number in range(count)]
    with DatasetWriter(folder, licence="cc0", max_bytes=per_shard * (max(map(len, content)) + 3 * 512 + 2048)) as writer:
        for number, media in enumerate(content):
            said = (Caption("original", f"number {number}", "original"),)
            facts = ClipFacts(f"clip{number:03d}", frames, fps, 32, 32, said, scores={"camera_motion": 0.0, "object_motion": 0.0})
            writer.write(facts, media)
        writer.finish({})
    return Index.open(folder, sets=[])


def prompt(**changed):
    said = {
        "version": "t-1",
        "system": "You describe.",
        "text": "Describe the clip.",
        "summary": "Sum up.",
        "hint": "Somebody said {caption}.",
    }
    return CaptionPrompt(**said | changed)


def form(**changed):
    said = {"parts": "frames", "quality": 80, "hint": None, "schema": True, "temperature": 0.0, "max_tokens": 200, "seed": 0}
    return ChatForm(**said | changed)


def chat(url, *, key=None, attempts=5, stop_after=8, asks=None, most_bytes=1 << 20, total=20.0, **changed):
    return ChatCaptioner(
        url=url,
        model="Lab/Model-1",
        key_variable=key,
        form=form(**changed),
        prompt=asks or prompt(),
        limits=AnswerLimits(connect_seconds=10.0, silent_seconds=10.0, total_seconds=total, most_bytes=most_bytes),
        retries=Retries(attempts=attempts, first_seconds=0.001, most_seconds=0.01),
        pace=Pace(start=4, most=8, hold=50.0),
        stop_after=stop_after,
    )


def job(index, captioner, work, *, name="new", taking=None, kinds=("short", "dense"), passes=1, max_failed=1.0, **more):
    settings = RecaptionSettings(taking=FrameTaking(**TAKING | (taking or {})), kinds=kinds, passes=passes, max_failed=max_failed)
    return Recaption(index, captioner, settings, name=name, work=work, **{"engine": serial, **more})


class Teller:
    """A captioner in this process that notes what it is asked. wrong: keys of clips that get an error."""

    even_frames, reads, name = False, (), "teller"

    def __init__(self, *, wrong=(), version=1):
        self.wrong, self.version, self.asked = set(wrong), version, []

    def identity(self):
        return {"teller": self.version}

    def __call__(self, requests):
        for request in requests:
            self.asked.append(request)
            if request.key in self.wrong:
                yield CaptionResult(id=request.id, error="it may not be seen", tokens_in=5)
                continue
            text = " then ".join(one.fields.short for one in request.windows) or f"{request.frames.mean():.3f}"
            fields = CaptionFields(short=f"mean {text}", dense=f"the mean is {text} in pass {request.pass_number}")
            yield CaptionResult(id=request.id, fields=fields, tokens_in=10, tokens_out=2)

    def close(self):
        pass


def captions(folder, name="new"):
    """All captions of a set by key and kind, as training would see them."""
    index = Index.open(folder, sets=[name])
    found = {
        index.key(row): {one.kind: one.text for one in index.captions(row) if one.captioner != "original"} for row in range(len(index))
    }
    return {key: said for key, said in found.items() if said}


def fields_of(**changed):
    said = {
        "short": "A red ball rolls.",
        "dense": "A red ball rolls to the left on grass.",
        "subjects": ["a ball"],
        "actions": ["it rolls"],
    }
    return json.dumps(said | {"camera": "still", "light": "", "style": "", "text_seen": ""} | changed)
