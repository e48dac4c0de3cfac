"""Jobs that share one curation: whoever ends last does the rest, also where two do so at the same moment; what failed is tried again."""

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from sora.curation.curating import Curation
from sora.curation.results import Failure, Results
from sora.curation.status import progress
from sora.curation.steps.finding import Cuts
from sora.data.index.index import Index
from sora.data.index.set_writers import SetFiles
from sora.data.index.units import JobPart
from sora.report.curated import view_of
from sora.report.curation import write_page
from sora.system.files import STAGING
from sora.system.locks import NAME, alone_in
from sora.video.files import write
from tests.curation.material import SERIAL, Jumps, a_dataset, content, curation, folder_of_videos, settings, shot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return folder_of_videos(tmp_path_factory.mktemp("parts") / "videos", 2)


def words(videos, output):
    said = [f"input={videos}", f"output={output}", "cuts=none", "spans.least_seconds=0.5", "transcode.size=null", "transcode.multiple=2"]
    return [*said, "engine=serial"]


def test_a_dataset_that_another_job_writes_is_left_to_it(videos, tmp_path):
    whole = curation(videos, tmp_path / "whole").run()
    name = whole.dataset.name
    with alone_in(tmp_path / "work", "writing", name=f"{NAME}-writing-{name}"):
        done = curation(videos, tmp_path / "work").run()
    assert done.waiting.startswith("the dataset: another process") and done.dataset is None and done.funnel is None
    assert not (tmp_path / "work" / name).exists()
    assert curation(videos, tmp_path / "work").run().dataset is not None
    assert content(tmp_path / "work") == content(tmp_path / "whole")


@pytest.mark.long
def test_parts_that_end_at_the_same_moment_leave_one_whole_dataset(videos, tmp_path):
    for attempt in range(8):
        work = tmp_path / str(attempt) / "work"
        work.parent.mkdir()
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "sora.curate", *words(videos, "work"), f"part=[{number},2]"],
                cwd=work.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in (0, 1)
        ]
        said = [(*one.communicate(timeout=120), one.returncode) for one in both]
        assert [code for *_, code in said] == [0, 0], said
        assert not any(error for _, error, _ in said), said
        assert len(list(work.glob("dataset-*/dataset.json"))) == 1
        if attempt:
            assert content(work) == content(tmp_path / "0/work")


def test_only_failures_are_tried_again_and_counted_in_every_stage(videos, tmp_path):
    first = curation(videos, tmp_path).run()
    before = content(tmp_path)
    for path in tmp_path.glob("dataset-*"):
        shutil.rmtree(path)
    for stage in ("scores", "transcode"):
        results = Results(next(tmp_path.glob(f"{stage}-*")))
        path = next(results.folder.glob("*.parquet"))
        path.unlink()
        results.fail(path.stem, Failure("took too long", died=True))
    assert [one.failed for one in progress(tmp_path) if one.stage == "transcode"] == [1]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*/*.parquet")}
    assert curation(videos, tmp_path).run().retried == 0
    for path in tmp_path.glob("dataset-*"):
        shutil.rmtree(path)
    again = curation(videos, tmp_path).run(retry=True)
    assert again.retried >= 2 and again.dataset == first.dataset
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items() if path.parent.name.startswith(("cuts", "scores")))
    assert {name: value for name, value in content(tmp_path).items() if name in before} == before


def test_progress_is_told_before_anything_and_of_foreign_folders_refused(videos, tmp_path):
    for folder in (tmp_path, videos):
        with pytest.raises(ValueError, match="no work folder of sora curate, or nothing was begun"):
            list(progress(folder))
    curation(videos, tmp_path, part=JobPart(0, 2)).run(until="probe")
    (probe, *_) = progress(tmp_path)
    assert probe.stage == "probe" and probe.done + probe.failed > 0 == probe.left
    (tmp_path / "curation.json").write_text("{")
    with pytest.raises(ValueError, match=r"curation\.json"):
        list(progress(tmp_path))


@pytest.mark.long
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_to_the_same_bytes(videos, tmp_path):
    def run(folder, most=None):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "sora.curate", *words(videos, "work")]
        limit = None if most is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # told as a full disk is
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=limit)

    told = run(tmp_path / "full", 8_000)
    assert told.returncode == 1 and len(told.stderr.splitlines()) == 1, told.stderr
    assert told.stderr.startswith("sora curate: ") and "work/scores-" in told.stderr
    assert not list(tmp_path.rglob(".staging-*"))
    for name in ("full", "whole"):
        assert run(tmp_path / name).returncode == 0
    assert content(tmp_path / "full/work") == content(tmp_path / "whole/work")


def one_part(number, place, work, gate, said):
    gate.wait()
    done = curation(place, work, part=JobPart(number, 2)).run()
    said.put((done.waiting, done.sets and (list(done.sets.scores), done.sets.selection)))


def test_parts_of_a_dataset_that_end_at_the_same_moment_write_its_sets_once(tmp_path, monkeypatch):
    curation(a_dataset(tmp_path / "before"), tmp_path / "work").run()
    place = a_dataset(tmp_path / "set")  # of the same clips: all but the sets is done
    begin = SetFiles.__init__

    def late(*said, **more):
        if multiprocessing.current_process().name == "1":  # looks whether there is a set, and begins one when the other has ended its own
            time.sleep(0.7)
        begin(*said, **more)

    monkeypatch.setattr(SetFiles, "__init__", late)
    fork = multiprocessing.get_context("fork")
    gate, said = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=one_part, name=str(number), args=(number, place, tmp_path / "work", gate, said)) for number in (0, 1)]
    for one in both:
        one.start()
    (waiting, names), again = (said.get(timeout=30) for _ in both)
    for one in both:
        one.join()
    assert names and not waiting and again == (waiting, names)
    index = Index.open(place, selection=names[1])
    assert len(index) == 3 and all(index.scores(row)["sharpness"] > 0 for row in range(3))
    assert not list(tmp_path.rglob(f"{NAME}*"))


def test_sets_that_another_job_writes_for_long_are_left_to_it(tmp_path, monkeypatch):
    place, work = a_dataset(tmp_path / "set", 2), tmp_path / "work"
    monkeypatch.setattr("sora.curation.writing_sets._PATIENCE", 0.1)
    with alone_in(work, "writing", name=f"{NAME}-writing-sets"):
        done = curation(place, work).run()
    assert done.waiting.startswith("the sets: another process") and done.sets is None
    assert curation(place, work).run().sets is not None


def test_what_a_killed_job_left_half_written_is_swept_and_nothing_of_a_job_that_may_be_alive(videos, tmp_path):
    (tmp_path / "probe-0").mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = {
        name: tmp_path / f"probe-0/{STAGING}{process}-{name}"
        for name, process in (("old", gone.pid), ("new", gone.pid), ("own", os.getpid()))
    }
    for name, path in left.items():
        path.write_bytes(b"PAR1")
        if name != "new":  # which may be of a process of another machine
            os.utime(path, (time.time() - 7200,) * 2)
    curation(videos, tmp_path).run(until="probe")
    assert [name for name, path in left.items() if path.exists()] == ["new", "own"]


def test_reading_an_input_is_shown_once_and_ends_with_all_of_it(videos, tmp_path):
    shown = []

    class Bar:
        def __init__(self, what, total):
            self.what, self.total = what, total

        def __enter__(self):
            return lambda done: shown.append((self.what, done, self.total))

        def __exit__(self, *_):
            pass

    def inputs():
        shown.clear()
        Curation(videos, tmp_path, settings(), engine=SERIAL, counting=Bar).run(until="probe")
        return [(done, total) for what, done, total in shown if what == "inputs"]

    counts = inputs()
    assert counts and counts[-1] == (3, 3) and counts == sorted(counts)  # clip 0, clip 1 and broken.mp4
    assert inputs() == []  # nothing is read again


def test_what_failed_is_told_with_its_stage_and_bars_what_follows(tmp_path):
    place = folder_of_videos(tmp_path / "videos", 1)
    done = curation(place, tmp_path / "work").run()
    (lost,) = (one for one in done.lost if one.source == "broken.mp4")
    assert lost.reason.startswith("probe: ") and str(tmp_path) not in lost.reason
    told = {one.stage: (one.done, one.failed, one.barred, one.left) for one in progress(tmp_path / "work")}
    assert told == {"probe": (1, 1, 0, 0), "cuts": (1, 0, 1, 0), "scores": (1, 0, 1, 0), "transcode": (1, 0, 0, 0)}


@pytest.mark.parametrize("trim_frames", [1, 0])
def test_equal_parts_of_a_long_shot_are_shown_as_no_cuts(tmp_path, trim_frames):
    place = tmp_path / "videos"
    place.mkdir()
    shots = [shot(number, frames, level=level) for number, (frames, level) in enumerate(((40, 60), (14, 160), (10, 60)))]
    write(place / "a.mp4", np.concatenate(shots), 8.0, lossless=False)
    one = curation(place, tmp_path / "work", cuts=Cuts(Jumps(), trim_frames=trim_frames, least_seconds=0.5, most_seconds=3.0))
    view = view_of(one, one.run(), title="", notes=(), commands=())
    assert [clip.goes_on for clip in view.clips if clip.clip] == [False, True, False, False]
    write_page(tmp_path / "page.html", view)
    page = (tmp_path / "page.html").read_text()
    assert "Frames on both sides of 2 cuts" in page and "At 1 place a shot that lasts longer" in page
