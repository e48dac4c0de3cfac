"""Every clip is answered or has a reason, whatever ends a job; nothing that was answered is asked again; finished sets never change."""

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest

from sora.captions.captioner import Captioner
from sora.captions.checks.checking import check_captions, checked
from sora.captions.rows import captioned_rows
from sora.data.index.index import Index
from sora.data.index.units import JobPart
from sora.web.client import CircuitOpen
from sora.web.stub import StubServer
from tests.captions.material import Teller, captions, chat, dataset, fields_of, job, quiet


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("made") / "set")


@pytest.fixture
def index(made, tmp_path):
    import shutil

    shutil.copytree(made.folder, tmp_path / "set")
    return Index.open(tmp_path / "set", sets=[])


def test_each_clip_is_captioned_from_its_own_frames_and_a_rerun_asks_nothing(index, tmp_path):
    teller = Teller()
    assert isinstance(teller, Captioner)
    done = job(index, teller, tmp_path / "work").run(quiet)
    assert done.sets == ["new"] and not done.waiting and len(teller.asked) == len(index) == 12
    said = captions(index.folder)
    for row in range(len(index)):
        (request,) = [one for one in teller.asked if one.key == index.key(row)]
        assert said[request.key]["short"] == f"mean {request.frames.mean():.3f}"
        assert request.frames.shape[1:] == (32, 32, 3) and list(request.times) == sorted(request.times) and request.times[0] == 0
    again = Teller()
    done = job(index, again, tmp_path / "work").run(quiet)
    assert not again.asked and done.sets == ["new"]


def test_cached_is_as_asked_anew_also_under_another_set_and_in_another_dataset(index, tmp_path):
    job(index, Teller(), tmp_path / "work").run(quiet)
    for name, folder in (("other", index), ("new", dataset(tmp_path / "twin", per_shard=3))):
        teller = Teller()
        done = job(folder, teller, tmp_path / "work", name=name).run(quiet) if name == "other" else None
        if name == "new":
            done = job(folder, teller, tmp_path / "work2", name=name)
            done.journal_folder = tmp_path / "work" / "answers" / done.namer.hash[:16]
            done = done.run(quiet)
        assert done is not None and not teller.asked and done.known == 12
        assert captions(folder.folder, name) == captions(index.folder)


def test_a_changed_prompt_makes_a_new_set_beside_the_old(index, tmp_path):
    one = job(index, Teller(), tmp_path / "work", name=None)
    two = job(index, Teller(version=2), tmp_path / "work", name=None)
    assert one.name != two.name
    before = one.run(quiet)
    content = (index.folder / f"captions-{one.name}.json").read_bytes()
    assert two.run(quiet).asked == before.asked == 12
    assert (index.folder / f"captions-{one.name}.json").read_bytes() == content
    with pytest.raises(ValueError, match=f"set={one.name} is of other settings"):
        job(index, Teller(version=2), tmp_path / "work", name=one.name).run(quiet)


def test_failures_are_columns_and_tried_again_only_when_asked(index, tmp_path):
    wrong = {"clip003", "clip007"}
    done = job(index, Teller(wrong=wrong), tmp_path / "work").run(quiet)
    assert done.failed == 2 and captions(index.folder).keys() == {index.key(row) for row in range(12)} - wrong
    rows = [row for shard in range(3) for row in captioned_rows(tmp_path / "work" / "new", shard)]
    assert {row["key"]: (row["reason"], row["tokens_in"]) for row in rows if row["reason"]} == dict.fromkeys(
        wrong, ("it may not be seen", 5)
    )
    manifest = (index.folder / "captions-new.json").read_bytes()
    teller = Teller()
    job(index, teller, tmp_path / "work").run(quiet)
    assert not teller.asked
    done = job(index, teller, tmp_path / "work", retry=True).run(quiet)
    assert {one.key for one in teller.asked} == wrong and done.sets == ["new", "new_again1"] and done.failed == 0
    assert (index.folder / "captions-new.json").read_bytes() == manifest  # runs pin it
    assert captions(index.folder, "new_again1").keys() == wrong
    rows = [row for shard in range(3) for row in captioned_rows(tmp_path / "work" / "new", shard)]
    assert {row["tokens_in"] for row in rows if row["key"] in wrong} == {15}  # what the failure took is not forgotten
    with pytest.raises(ValueError, match="without part="):
        job(index, Teller(), tmp_path / "work", retry=True, part=JobPart(0, 2)).run(quiet)


def test_a_set_with_too_many_failures_is_not_finished(index, tmp_path):
    done = job(index, Teller(wrong={"clip000"}), tmp_path / "work", max_failed=0.05).run(quiet)
    assert "retry=failed" in done.waiting and not done.sets and not (index.folder / "captions-new.json").exists()
    done = job(index, Teller(), tmp_path / "work", max_failed=0.05, retry=True).run(quiet)
    assert done.sets == ["new"] and len(captions(index.folder)) == 12 and done.asked == 1


def test_parts_make_the_same_set_and_whichever_ends_last_finishes_it(index, tmp_path):
    whole = dataset(tmp_path / "whole")
    job(whole, Teller(), tmp_path / "work0").run(quiet)
    ended = [job(index, Teller(), tmp_path / "work", part=JobPart(number, 3)).run(quiet) for number in (2, 0, 1)]
    assert [bool(done.waiting) for done in ended] == [True, True, False] and ended[-1].sets == ["new"]
    assert sum(done.asked for done in ended) == 12
    files = sorted(path.name for path in index.folder.glob("captions-new*"))
    for name in files:
        if name.endswith(".parquet"):
            assert (index.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    said = [json.loads((folder / "captions-new.json").read_text()) for folder in (index.folder, whole.folder)]
    assert said[0]["files"] == said[1]["files"]


def test_long_clips_are_captioned_from_the_captions_of_their_parts(tmp_path):
    index = dataset(tmp_path / "set", 3, frames=24, fps=4.0)
    teller = Teller()
    job(index, teller, tmp_path / "work", taking={"window_seconds": 2.5}).run(quiet)
    for key, said in captions(index.folder).items():
        parts = [one for one in teller.asked if one.key == key and not one.windows]
        (whole,) = [one for one in teller.asked if one.key == key and one.windows]
        assert len(parts) == 3 and [(one.start, one.end) for one in whole.windows] == [(0, 2), (2, 4), (4, 6)]
        assert all(start <= min(one.times) and max(one.times) < end for one, (start, end, _) in zip(parts, whole.windows, strict=True))
        assert said["short"] == "mean " + " then ".join(f"mean {one.frames.mean():.3f}" for one in parts)
    again = Teller()
    job(index, again, tmp_path / "work", taking={"window_seconds": 2.5}, name="other").run(quiet)
    assert not again.asked
    broken = Teller(wrong={"clip001"}, version=2)
    done = job(index, broken, tmp_path / "work", taking={"window_seconds": 2.5}, name="third").run(quiet)
    assert done.failed == 1 and not [one for one in broken.asked if one.windows and one.key == "clip001"]


def test_a_second_pass_is_a_request_of_its_own_and_only_checked(index, tmp_path):
    teller = Teller()
    job(index, teller, tmp_path / "work", passes=2).run(quiet)
    assert sorted(one.pass_number for one in teller.asked) == [0] * 12 + [1] * 12
    assert all("pass 0" in said["dense"] for said in captions(index.folder).values())
    assert {row["second"][-6:] for row in captioned_rows(tmp_path / "work" / "new", 0)} == {"pass 1"}


def test_clips_that_show_the_same_are_asked_for_once(tmp_path):
    """Two clips of the same bytes under two keys."""
    from sora.data.index.index import ClipFacts, DatasetWriter
    from sora.video.files import encode
    from tests.captions.material import clip

    media = encode(clip(3), 4.0, lossless=True)
    with DatasetWriter(tmp_path / "set", licence="", max_bytes=1 << 20) as writer:
        for key in ("a", "b"):
            writer.write(ClipFacts(key, 4, 4.0, 32, 32), media)
        writer.finish({})
    teller = Teller()
    job(Index.open(tmp_path / "set", sets=[]), teller, tmp_path / "work").run(quiet)
    assert len(teller.asked) == 1 and len(captions(tmp_path / "set")) == 2


def test_a_damaged_clip_is_a_reason_and_costs_nothing(index, tmp_path):
    shard = index.folder / index.described["shards"][1]["shard"]
    content = bytearray(shard.read_bytes())
    member = index.member(5)
    content[member.offset + 40 : member.offset + member.size] = bytes(member.size - 40)
    shard.write_bytes(bytes(content))
    teller = Teller()
    done = job(index, teller, tmp_path / "work").run(quiet)
    assert done.failed == 1 and len(teller.asked) == 11
    (row,) = [row for row in captioned_rows(tmp_path / "work" / "new", 1) if row["reason"]]
    assert row["key"] == index.key(5) and "frames could not be taken" in row["reason"] and row["requests"] == 0


KILLED = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from sora.data.index.index import Index
    from tests.captions.material import chat, job, quiet
    job(Index.open(sys.argv[1], sets=[]), chat(sys.argv[2], attempts=9, stop_after=50), Path(sys.argv[3])).run(quiet)
    """
)


@pytest.mark.slow
def test_killed_at_any_moment_no_answer_is_lost_or_paid_twice(tmp_path):
    """SIGKILL after random numbers of answers, under faults: every clip is answered, and none again whose answer was there at the kill."""
    from sora.captions.journal import AnswerJournal

    index = dataset(tmp_path / "set", 60, per_shard=20)
    server = StubServer(lambda body: fields_of(), faults={"status_500": 0.15, "cut": 0.1, "reset": 0.1}, seconds=0.02)
    words = [sys.executable, "-c", KILLED, str(index.folder), server.url, str(tmp_path / "work")]
    folder = job(index, chat(server.url), tmp_path / "work").journal_folder
    draw, known, twice = random.Random(4), 0, 0
    try:
        for _ in range(3):
            before = sum(server.good.values())
            ran = subprocess.Popen(words, cwd=os.getcwd(), stderr=subprocess.DEVNULL)
            target = before + draw.randint(5, 15)
            while sum(server.good.values()) < target and ran.poll() is None:
                time.sleep(0.005)
            ran.kill()
            ran.wait()
            answered = len(AnswerJournal(folder))
            assert answered >= known
            known = answered
        paid = sum(server.good.values())
        assert job(index, chat(server.url, attempts=9), tmp_path / "work").run(quiet).asked == 60 - known
        twice = sum(server.good.values()) - paid - (60 - known)
    finally:
        server.close()
    assert twice == 0 and len(captions(index.folder)) == 60


def test_a_server_that_goes_away_leaves_what_was_done_and_marks_nothing(index, tmp_path, monkeypatch):
    server = StubServer(lambda body: fields_of(), seconds=0.005)
    try:
        captioner = chat(server.url, attempts=2, stop_after=3)
        work = job(index, captioner, tmp_path / "work")
        taken = work.namer.request

        def counted(*args, **said):
            if len(server.asked) >= 5:
                server.faults = {"status_500": 1.0}
            return taken(*args, **said)

        monkeypatch.setattr(work.namer, "request", counted)
        with pytest.raises(CircuitOpen, match=r"in a row failed.*the same command goes on"):
            work.run(quiet)
        good = sum(server.good.values())
        assert 0 < good < 12
        server.faults = {}
        done = job(index, chat(server.url), tmp_path / "work").run(quiet)
        assert (done.asked, done.failed) == (12 - good, 0) and len(captions(index.folder)) == 12
    finally:
        server.close()


def test_a_request_that_was_cut_off_is_no_failure_though_answers_come_after_it(index, tmp_path):
    class Cutting(Teller):
        def __call__(self, requests):
            for request, result in zip(asked := list(requests), super().__call__(iter(asked)), strict=True):
                yield replace(result, fields=None, error="stopped", cut=True) if request.key == "clip004" else result
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        job(index, Cutting(), tmp_path / "work").run(quiet)
    teller = Teller()
    done = job(index, teller, tmp_path / "work").run(quiet)
    assert [one.key for one in teller.asked] == ["clip004"] and done.failed == 0 and len(captions(index.folder)) == 12


def test_every_clip_has_one_row_in_the_table_with_its_flags(index, tmp_path):
    from sora.captions.checks.flags import CaptionChecks

    job(index, Teller(wrong={"clip004"}), tmp_path / "work").run(quiet)
    limits = {"repeated": 0.2, "same": 3, "agreement": 0.2, "language": None, "still": 0.01, "moving": 0.1}
    checks = CaptionChecks(dense_words=(50, 100), short_words=20, **limits)
    counts = check_captions(index, tmp_path / "work" / "new", [0, 1, 2], checks)
    rows = list(checked(tmp_path / "work" / "new"))
    assert [row["key"] for row in rows] == [index.key(row) for row in range(12)]
    assert all(row["flags"] == ([] if row["reason"] else ["too_short"]) for row in rows)
    assert counts.flags == {"too_short": 11} and counts.captioned == 11
    assert np.all([row["row"] == place for place, row in enumerate(rows)])
