"""Laws of a whole curation: what is killed goes on to the same bytes, engines and parts agree, and every frame is accounted for."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from sora.curation.deciding import decided
from sora.curation.results import Results
from sora.curation.selecting import SelectionRules
from sora.curation.steps.deduplicating import Deduplication
from sora.curation.steps.modelling import Embedding, ModelScoring
from sora.data.index.index import Index
from sora.data.index.units import JobPart
from sora.video.files import probe
from tests.curation import material
from tests.curation.material import content, curation, folder_of_videos, processes, shot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return folder_of_videos(tmp_path_factory.mktemp("curated") / "2026_11_29 ü")


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    work = tmp_path_factory.mktemp("whole") / "work"
    return work, curation(videos, work).run()


def rows_of(one, done):
    return [row for _, rows in decided(one.select, done.decision, done.inputs) for row in rows]


def test_every_frame_of_every_video_ends_in_one_part_with_one_reason(videos, whole):
    work, done = whole
    rows = rows_of(curation(videos, work), done)
    for path in sorted(videos.glob("clip*.mp4")):
        mine = sorted((row["first"], row["end"]) for row in rows if row["source"] == path.name)
        frames = probe(path, timeline=True).frames
        assert [number for first, end in mine for number in range(first, end)] == list(range(frames))
    assert done.funnel is not None and sum(done.funnel.clips.values()) == len(rows)
    index = Index.open(done.dataset)
    assert len(index) == done.funnel.kept == sum(not row["rule"] for row in rows) > 4
    assert {"transition", "trimmed", "too short"} & set(done.funnel.clips)


def test_what_is_no_video_is_named_and_ends_nothing(whole):
    _, done = whole
    named = {one.source: one.reason for one in (*done.inputs.refused, *done.lost)}
    assert set(named) == {"broken.mp4", "page.mp4"}
    assert "notes.pdf" in {one.source for one in done.inputs.passed}


def test_captions_and_scores_reach_the_rows(whole):
    _, done = whole
    index = Index.open(done.dataset)
    rows = [index.row(number) for number in range(len(index))]
    assert all(row.captions[0].text == f"a texture that moves, number {row.source[5]}" for row in rows)
    assert all(row.scores["sharpness"] > 0 and row.extra["sha256_of_source"].startswith(row.key[:16]) for row in rows)
    assert [row.start for row in rows if row.source == "clip 0 ü.mp4"] != sorted({0.0})


def test_engines_and_numbers_of_processes_make_the_same_bytes(videos, whole, tmp_path):
    for workers in (1, 3):
        done = curation(videos, tmp_path / str(workers), engine=processes(workers)).run()
        assert done.dataset is not None and content(tmp_path / str(workers)) == content(whole[0])


def test_parts_in_any_order_make_the_same_bytes_and_the_last_one_does_the_rest(videos, whole, tmp_path):
    for number in (2, 0, 1):
        done = curation(videos, tmp_path, part=JobPart(number, 3)).run()
        assert bool(done.waiting) == (number != 1)
    assert content(tmp_path) == content(whole[0])


def test_a_curation_that_is_broken_off_after_any_write_goes_on_to_the_same_bytes(videos, whole, tmp_path, monkeypatch):
    """After each of its writes; a kill between them leaves less, and a kill within one leaves a file under another name."""
    plain, left = Results.write, 0

    def write(self, unit, table, **more):
        nonlocal left
        plain(self, unit, table, **more)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Results, "write", write)
    points = 0
    while True:
        left = 1
        points += 1
        try:
            curation(videos, tmp_path).run()
            break
        except KeyboardInterrupt:
            if points == 5:
                stale = next(tmp_path.glob("cuts-*")) / ".staging-1-00-x.parquet"
                stale.write_bytes(b"cut")  # what kill -9 leaves in the middle of a write
    assert points > 15
    stale.unlink()
    assert content(tmp_path) == content(whole[0])


def test_a_changed_rule_decodes_nothing_again(videos, tmp_path, monkeypatch):
    first = curation(videos, tmp_path).run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    monkeypatch.setattr(material.Jumps, "__call__", None)
    rows = rows_of(curation(videos, tmp_path), first)
    limit = sorted(row["scores"]["luma"] for row in rows if not row["rule"])[1]
    done = curation(videos, tmp_path, selection=SelectionRules(rules={"luma": (limit, None)})).run()
    assert done.funnel is not None and first.funnel is not None and done.funnel.kept == first.funnel.kept - 1
    new = {path for path in tmp_path.rglob("*.parquet") if path not in before}
    stages = {path.parent.name.partition("-")[0] for path in new}
    assert stages <= {
        "select",
        "transcode",
        *(path.parent.name.partition("-")[0] for path in new if path.parent.name.startswith("dataset-")),
    }
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.parent.name.startswith(("probe", "cuts", "scores")))
    assert first.dataset != done.dataset and Index.open(first.dataset) is not None


def test_one_more_video_is_worked_on_alone(videos, tmp_path, whole):
    place = shutil.copytree(videos, tmp_path / "videos")
    work = tmp_path / "work"
    shutil.copytree(whole[0], work)
    before = set(work.rglob("*.parquet"))
    material.write(place / "another.mp4", shot(77, 20, level=90), 8.0, lossless=False)
    done = curation(place, work).run()
    new = [path for path in work.rglob("*.parquet") if path not in before and path.parent.parent == work]
    made = [path.parent.name.partition("-")[0] for path in new if not path.parent.name.startswith(("dataset", "plan"))]
    assert sorted(made) == ["cuts", "duplicates", "probe", "scores", "select", "transcode"]
    assert done.funnel is not None and done.funnel.kept > whole[1].funnel.kept


def test_names_and_their_order_do_not_matter_to_what_is_computed(videos, whole, tmp_path):
    place = tmp_path / "renamed"
    place.mkdir()
    for number, path in enumerate(sorted(videos.glob("clip*.mp4"), reverse=True)):
        shutil.copy(path, place / f"{number}.mp4")
    work = tmp_path / "work"
    shutil.copytree(whole[0], work)
    before = set(work.rglob("*.parquet"))
    curation(place, work).run()
    new = {path.parent.name.partition("-")[0] for path in work.rglob("*.parquet") if path not in before and path.parent.parent == work}
    assert new <= {"duplicates", "select", "plan"} | {name for name in new if name.startswith("dataset")}


def test_a_video_that_changes_under_its_name_is_a_new_one(videos, tmp_path):
    place = shutil.copytree(videos, tmp_path / "videos")
    first = curation(place, tmp_path / "work").run()
    path = place / "clip 1 ü.mp4"
    about = path.stat()
    material.write(path, shot(5, 24, level=120), 8.0, lossless=False)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # as cp -p and rsync leave it
    second = curation(place, tmp_path / "work").run()
    assert first.dataset != second.dataset and second.dataset is not None
    index = Index.open(second.dataset)
    assert {index.row(number).frames for number in range(len(index)) if index.row(number).source == path.name} == {12}


def test_copies_under_other_names_are_told_and_count_once(videos, tmp_path):
    place = shutil.copytree(videos, tmp_path / "videos")
    shutil.copy(place / "clip 2 ü.mp4", place / "again.mp4")
    done = curation(place, tmp_path / "work").run(until="cuts")
    assert done.inputs.copies == {"clip 2 ü.mp4": "again.mp4"}


def test_copies_of_other_bytes_are_found_and_the_best_one_that_is_fit_stays(videos, tmp_path):
    place = shutil.copytree(videos, tmp_path / "videos")
    film = np.concatenate([shot(41, 24, level=140, height=72, width=128), shot(42, 24, level=60, height=72, width=128)])
    material.write(place / "large.mp4", film, 8.0, lossless=False)
    material.write(place / "small.mp4", film[:, ::2, ::2], 8.0, lossless=False)
    material.write(place / "mirrored.mp4", np.ascontiguousarray(film[:, ::2, 126::-2]), 8.0, lossless=False)
    changed = {"cuts": material.Cuts(material.Jumps(), trim_frames=1, least_seconds=0.5, most_seconds=None)}
    one = curation(place, tmp_path / "work", **changed)
    kept = [row for row in rows_of(one, one.run()) if row["source"] in ("large.mp4", "small.mp4", "mirrored.mp4")]
    assert {row["source"] for row in kept if not row["rule"]} == {"large.mp4"}
    assert {row["rule"] for row in kept if row["source"] in ("small.mp4", "mirrored.mp4")} <= {"duplicate", "trimmed", "transition"}
    # where the largest is not fit, the next best stays, and only that one
    rules = SelectionRules(rules={"height": (None, 40)})
    two = curation(place, tmp_path / "work", selection=rules, **changed)
    kept = [row for row in rows_of(two, two.run()) if row["source"] in ("large.mp4", "small.mp4", "mirrored.mp4") and not row["rule"]]
    assert len({row["source"] for row in kept}) == 1 and "large.mp4" not in {row["source"] for row in kept} and len(kept) == 2


def test_no_clip_of_an_evaluation_set_is_trained_on(videos, whole, tmp_path):
    place = tmp_path / "videos"
    place.mkdir()
    shutil.copy(videos / "clip 1 ü.mp4", place)
    material.write(place / "other.mp4", shot(9, 24, level=90), 8.0, lossless=False)
    guard = Deduplication(overlap=0.5, against=[whole[1].dataset])
    one = curation(place, tmp_path / "work", duplicates=guard)
    rows = [row for row in rows_of(one, one.run()) if row["rule"] in ("", "evaluation")]
    assert {row["source"] for row in rows if row["rule"]} == {"clip 1 ü.mp4"}
    assert {row["source"] for row in rows if not row["rule"]} == {"other.mp4"}


@pytest.mark.parametrize(("similarity", "kept"), [(0.9, 2), (0.999, 3)])
def test_clips_of_alike_embeddings_show_the_same_also_beside_an_evaluation_set(tmp_path, similarity, kept):
    place, guard = tmp_path / "videos", tmp_path / "guard"
    place.mkdir()
    guard.mkdir()
    tints = {"a": (60, 0, 0), "b": (60, 9, 0), "c": (0, 60, 0), "d": (0, 0, 60), "guard": (0, 0, 60)}  # every texture is another
    for seed, (name, tint) in enumerate(tints.items()):
        frames = (shot(seed, 10, level=128).astype(int) + tint).clip(0, 255).astype(np.uint8)
        material.write((guard if name == "guard" else place) / f"{name}.mp4", frames, 8.0, lossless=True)
    transcode = material.Transcode(fps=None, size=None, multiple=2, lossless=True)
    against = curation(guard, tmp_path / "of guard", transcode=transcode).run().dataset
    said = {"overlap": 0.5, "against": [against]}
    plain = curation(place, tmp_path / "work", duplicates=Deduplication(**said)).run(until="select")
    embedded = Deduplication(**said, embedding=Embedding("hues", material.Hues()), similarity=similarity)
    one = curation(place, tmp_path / "work", duplicates=embedded)
    rules = {row["source"][0]: row["rule"] for row in rows_of(one, one.run())}
    assert plain.funnel.kept == 4 and [rules["c"], rules["d"]] == ["", "evaluation"]
    assert sum(not rule for rule in rules.values()) == kept and {rules["a"], rules["b"]} == ({"", "duplicate"} if kept == 2 else {""})


def test_a_dataset_gets_scores_and_a_selection_and_keeps_its_shards(whole, tmp_path):
    folder = Path(shutil.copytree(whole[1].dataset, tmp_path / "set"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    index = Index.open(folder)
    limit = sorted(index.row(number).scores["luma"] for number in range(len(index)))[2]
    done = curation(folder, tmp_path / "work", selection=SelectionRules(rules={"luma": (limit, None)})).run()
    assert done.sets is not None and done.dataset is None
    chosen = Index.open(folder, selection=done.sets.selection)
    assert 0 < len(chosen) == done.funnel.kept < len(index)
    assert all(index.scores(number)["sharpness"] > 0 for number in range(len(index)))
    assert {name: (folder / name).read_bytes() for name in before} == before
    again = curation(folder, tmp_path / "work", selection=SelectionRules(rules={"luma": (limit, None)})).run()
    assert again.sets == done.sets


def test_a_score_of_captions_follows_them_and_parts_agree(videos, tmp_path):
    place = shutil.copytree(videos, tmp_path / "videos")
    scoring = (material.CheapScoring(), ModelScoring("letters", material.Letters()))
    whole = curation(place, tmp_path / "whole", scoring=scoring).run()
    for number in (1, 0):
        curation(place, tmp_path / "parts", scoring=scoring, part=JobPart(number, 2)).run()
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    index = Index.open(whole.dataset)
    assert {index.row(row).scores["letters"] for row in range(len(index))} == {float(len("a texture that moves, number 0"))}
    (place / "clip 0 ü.txt").write_text("short")
    one = curation(place, tmp_path / "whole", scoring=scoring)
    before = set((tmp_path / "whole").glob("score*/*.parquet"))
    rows = [row for row in rows_of(one, one.run()) if not row["rule"]]
    assert {row["scores"]["letters"] for row in rows if row["source"] == "clip 0 ü.mp4"} == {5.0}
    assert len(set((tmp_path / "whole").glob("score*/*.parquet")) - before) == 1


@pytest.mark.long
def test_a_curation_that_is_killed_at_random_moments_ends_in_the_same_bytes(videos, tmp_path):
    import signal
    import subprocess
    import sys
    import time

    command = [sys.executable, "-m", "sora.curate", f"input={videos}", "cuts=none", "spans.most_seconds=1.5", "spans.least_seconds=0.5"]
    command += ["transcode.size=null", "transcode.multiple=2", "output=work"]  # of the same name, which stands on the page
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    subprocess.run(command, cwd=tmp_path / "whole", check=True, capture_output=True)
    moments, killed = random.Random(0), 0
    while killed < 22:
        process = subprocess.Popen(command, cwd=tmp_path / "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.9, 2.2))
        if process.poll() is not None:
            assert process.returncode == 0
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        for path in (tmp_path / "killed/work").glob("dataset-*"):  # so that there is something left to do
            shutil.rmtree(path)
        for path in sorted((tmp_path / "killed/work").glob("*-*/*.parquet"))[killed % 3 :: 3]:
            path.unlink()
    assert killed >= 20
    subprocess.run(command, cwd=tmp_path / "killed", check=True, capture_output=True)
    left = {name: value for name, value in content(tmp_path / "killed/work").items() if ".staging-" not in name}
    assert left == content(tmp_path / "whole/work")
