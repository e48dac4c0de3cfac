"""`sora recaption`: what the client costs beside a bare loop, how fast it asks, and that five kills neither lose nor pay twice for a row.

`make bench-recaption` writes recaption.json here; ARGS="only=NAME" makes one part of it alone. The server is the stub, in a process of its
own. Ratios are of processor time of the asking process, measured side by side in one run, medians.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import numpy as np

from sora.captions.captioner import CaptionRequest
from sora.captions.captioners.chat import ChatCaptioner, ChatForm
from sora.captions.frames import FrameTaking
from sora.captions.journal import AnswerJournal
from sora.captions.prompts import CaptionPrompt
from sora.captions.recaptioning import Recaption, RecaptionSettings
from sora.captions.rows import all_rows
from sora.captions.taking import TakenFrames
from sora.data.index.index import ClipFacts, DatasetWriter, Index
from sora.system.files import write_json
from sora.system.guarded_pool import Outcome
from sora.web.answers import HttpAnswer
from sora.web.client import ServerClient
from sora.web.endpoint import Endpoint
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace
from sora.web.stub import StubServer, named

HERE = Path(__file__).resolve().parent
ROWS, KILLS, PER_SHARD = 10_000, 5, 500
FAULTS = {"status_429": 0.1, "status_500": 0.1, "cut": 0.1, "reset": 0.05, "html": 0.05}
BODY = 320_000  # bytes: eight frames of 30 kB, as text
ROUNDS, EACH = 7, 200


# The server, in a process of its own


def content(name: str = "") -> str:
    said = {"short": f"A red ball {name}.", "dense": "A red ball rolls to the left on grass.", "subjects": [], "actions": []}
    return json.dumps(said | dict.fromkeys(("camera", "light", "style", "text_seen"), ""))


def serve(pipe: Connection, faults: dict[str, float], seconds: float) -> None:
    server = StubServer(lambda body: content(body["messages"][1]["content"][-1]["text"] if "messages" in body else ""), keep=False)
    server.faults, server.seconds = faults, seconds
    pipe.send(server.url)
    while pipe.recv() == "good":
        pipe.send(dict(server.good))
    server.close()


@contextmanager
def stub(faults: dict[str, float] | None = None, seconds: float = 0.0) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """The server's address, and a function that gives how often each request had a good answer."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, faults or {}, seconds), daemon=True)
    process.start()
    url = ours.recv()

    def good() -> Counter[str]:
        ours.send("good")
        return Counter(ours.recv())

    try:
        yield url, good
    finally:
        ours.send("end")
        process.join(5)
        process.kill()


def settings(*, most: int = 64) -> dict[str, Any]:
    return {
        "limits": AnswerLimits(connect_seconds=5.0, silent_seconds=20.0, total_seconds=60.0, most_bytes=1 << 20),
        "retries": Retries(attempts=6, first_seconds=0.01, most_seconds=0.05),
        "pace": Pace(start=min(16, most), most=most, hold=1e6),
        "stop_after": 1000,
    }


def captioner(url: str) -> ChatCaptioner:
    form = ChatForm(parts="frames", quality=85, hint=None, schema=True, temperature=0.0, max_tokens=200, seed=0)
    prompt = CaptionPrompt(version="b", system="You describe.", text="Describe the clip.", summary="Sum up.", hint="{caption}")
    return ChatCaptioner(url=url, model="m", key_variable=None, form=form, prompt=prompt, **settings())


# The client beside a bare loop


@dataclass
class Post:
    """A request whose body is there."""

    number: int
    content: bytes
    path: str = "/chat/completions"

    @property
    def id(self) -> str:
        return str(self.number)

    def body(self, attempt: int) -> bytes:
        return self.content

    def judge(self, answer: HttpAnswer) -> Any:
        return json.loads(answer.body)


def bodies(count: int) -> list[bytes]:
    return [json.dumps({"number": number, "data": random.Random(number).randbytes(BODY // 2).hex()}).encode() for number in range(count)]


def by_client(url: str, posted: list[bytes]) -> None:
    with ServerClient(Endpoint(url), **settings()) as client:
        assert all(not one.reason for one in client.each(Post(number, body) for number, body in enumerate(posted)))


def by_bare_loop(url: str, posted: list[bytes]) -> None:
    """The library below the client: one connection, one request after another."""
    with httpcore2.ConnectionPool() as pool:
        for body in posted:
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            json.loads(pool.request("POST", f"{url}/chat/completions", headers=headers, content=body).content)


def by_stock_client(url: str, posted: list[bytes]) -> None:
    with httpx2.Client(trust_env=False) as client:
        for body in posted:
            client.post(f"{url}/chat/completions", content=body, headers={"Content-Type": "application/json"}).json()


def processor(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def client() -> dict[str, Any]:
    ways = {"client": by_client, "bare_loop": by_bare_loop, "stock": by_stock_client}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    posted = bodies(EACH)
    with stub() as (url, _):
        for way in ways.values():
            way(url, posted[:20])
        for _ in range(ROUNDS):
            for name, way in ways.items():
                taken[name].append(processor(lambda way=way: way(url, posted)))
    ratios = [one / two for one, two in zip(taken["client"], taken["bare_loop"], strict=True)]
    stock = [one / two for one, two in zip(taken["client"], taken["stock"], strict=True)]
    each = {f"{name}_ms_a_request": 1e3 * statistics.median(times) / EACH for name, times in taken.items()}
    return {"client_vs_bare_loop": statistics.median(ratios), "client_vs_stock_client": statistics.median(stock), **each}


def rate() -> dict[str, Any]:
    """Requests a second of the whole captioner, JPEGs and reading included, while each answer takes the server 50 ms."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 18, 32, 3), dtype=np.uint8)
    frames = noise.repeat(16, axis=1).repeat(16, axis=2)  # 288 x 512
    times, count = tuple(number / 2 for number in range(8)), 1500
    found, taken, sizes = [], [], []
    with stub(seconds=0.05) as (url, _):
        for _ in range(3):
            asks = (CaptionRequest(id=f"{number:064x}", key="k", frames=frames, times=times) for number in range(count))
            began, used = time.monotonic(), time.process_time()
            assert sum(one.fields is not None for one in captioner(url)(asks)) == count
            found.append(count / (time.monotonic() - began))
            taken.append(1e3 * (time.process_time() - used) / count)
        with ServerClient(Endpoint(url), **settings()) as asking:
            posted = bodies(EACH)
            began = time.monotonic()
            done = sum(1 for _ in asking.each(Post(number, posted[number % EACH]) for number in range(count)))
            sizes.append(done / (time.monotonic() - began))
    each = {"captioner_ms_a_request": statistics.median(taken)}
    return {"requests_per_s": statistics.median(found), **each, "requests_per_s_of_bodies_that_are_there": statistics.median(sizes)}


# Rows through kills


def drawn(function: Any, items: Iterable[Any]) -> Iterator[Outcome]:
    """An engine that draws two frames for each row instead of decoding a clip."""
    for item in items:
        frames = np.random.default_rng(item[0]).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
        yield Outcome(item, [TakenFrames(0.0, 1.0, (0.0, 1.0), frames)])


@contextmanager
def quiet(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def job(folder: Path, url: str, work: Path) -> Recaption:
    taking = FrameTaking(count=2, most=2, every_seconds=9.0, side=16, window_seconds=None, rate=8.0)
    said = RecaptionSettings(taking=taking, kinds=("short", "dense"), passes=1, max_failed=0.5)
    return Recaption(Index.open(folder, sets=[]), captioner(url), said, name="new", work=work, engine=drawn)


def recaption(folder: Path, url: str, work: Path) -> None:
    job(folder, url, work).run(quiet)


def dataset(folder: Path) -> None:
    size = PER_SHARD * (512 + 512 + 512 + 1024)
    with DatasetWriter(folder, licence="", max_bytes=size) as writer:
        for number in range(ROWS):
            writer.write(ClipFacts(f"clip{number:05d}", 2, 2.0, 16, 16), b"%d" % number)
        writer.finish({})


def saved(folder: Path) -> set[str]:
    """The ids of the requests whose answers are kept."""
    journal = AnswerJournal(folder)
    names = {name for name in journal.names() if journal.has(name, failed=False)}
    journal.close()
    return names


def asked_names(made: Recaption) -> dict[str, str]:
    """The name that the server has for each request, by the request's id."""
    asked, found = made.captioner, dict[str, str]()
    assert isinstance(asked, ChatCaptioner) and asked.url is not None
    for done in drawn(None, [(row, None) for row in range(ROWS)]):
        request = made.namer.request(done.result[0], key="", facts={}, pass_number=0)
        found[request.id] = named(asked.ask(request, Endpoint(asked.url)).body(1))
    return found


def rows() -> dict[str, Any]:
    """Rows that are neither answered nor marked, and rows that were paid again though their answer was kept when the job was killed."""
    draw = random.Random(7)
    with tempfile.TemporaryDirectory() as place, stub(FAULTS, 0.01) as (url, good):
        folder, work = Path(place) / "set", Path(place) / "work"
        dataset(folder)
        first = job(folder, url, work)
        names, twice = asked_names(first), set[str]()
        known: list[tuple[set[str], Counter[str]]] = []
        began = time.monotonic()
        for mark in [*sorted(draw.sample(range(500, ROWS - 500), KILLS)), None]:
            process = get_context("spawn").Process(target=recaption, args=(folder, url, work))
            process.start()
            while mark is not None and sum(good().values()) < mark and process.is_alive():
                time.sleep(0.05)
            if mark is not None:
                process.kill()
            process.join()
            time.sleep(0.2)  # answers that are on their way are counted by the server
            now = good()
            for kept, before in known:
                twice |= {name for name in kept if now[name] > before[name]}
            known.append(({names[name] for name in saved(first.journal_folder)}, now))
        seconds = time.monotonic() - began
        settled = list(all_rows(first.rows, first.shards))
        again = job(folder, url, Path(place) / "again")
        again.journal_folder, again.name, again.rows = first.journal_folder, "again", Path(place) / "again" / "again"
        return {
            "rows": ROWS,
            "rows_lost": ROWS - len({row["key"] for row in settled if row["reason"] or row["short"]}),
            "rows_twice": len(twice),
            "rows_failed": sum(bool(row["reason"]) for row in settled),
            "rows_in_flight_at_kills": sum(count - 1 for count in known[-1][1].values()) - len(twice),
            "asked_by_a_rerun": again.run(quiet).asked,
            "rows_per_s": ROWS / seconds,
        }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"client": client, "rate": rate, "rows": rows}


def main() -> None:
    only = next((word.removeprefix("only=") for word in sys.argv[1:] if word.startswith("only=")), None)
    path = HERE / "recaption.json"
    figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["figures"] if only and path.is_file() else {}
    for name, part in PARTS.items():
        if only in (None, name):
            found = part()
            figures |= found
            print(name, json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    about = {"commit": commit, "cores": len(os.sched_getaffinity(0)), "machine": platform.processor() or platform.machine()}
    write_json(path, {"figures": dict(sorted(figures.items())), "about": about | {"load": os.getloadavg()[0]}})
    print(path)


if __name__ == "__main__":
    main()
