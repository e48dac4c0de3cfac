"""What a hurried or hostile user hands to a curation: one line that names the key, the page also where nothing is kept, nothing stale."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.curation.deciding import decided
from sora.curation.inputs import InputSettings, inputs_of
from sora.curation.joining import Shards
from sora.curation.results import CurationStage, Results
from sora.curation.selecting import SelectionRules
from sora.curation.status import progress
from sora.curation.steps.deduplicating import Deduplication
from sora.data.index.index import ClipFacts, DatasetWriter, Index
from sora.video.files import encode, write
from tests.curation.material import SERIAL, curation, shot

CHANGES = ("value", "row", "column", "kind", "place", "empty")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "my videos"
    (folder / "inside").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "inside/open_source.b.mp4")):
        write(folder / name, shot(number, 12, level=90 + 60 * number), 8.0, lossless=False)
        (folder / name).with_suffix(".txt").write_text(f"number {number}")
    return folder


def read(place, work, **settings):
    return inputs_of(place, work, InputSettings(**settings), run=SERIAL)


# Facts and lists


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("file,licence", "a.mp4,cc0", "a.mp4,mit"), "line 3: a.mp4 has another row, which says otherwise"),
        (("file,licens", "a.mp4,cc0"), "none of the columns licence, consent and source, only file, licens"),
        (("file,licence", ",cc0"), "line 2 names no video: its `file` is empty"),
        (("name,licence", "a.mp4,cc0"), "needs a column `file`"),
        (("file,licence", "c.mp4,cc0"), "line 2: c.mp4: no video is called so"),
    ],
)
def test_a_table_of_facts_that_would_be_lost_is_refused(videos, tmp_path, lines, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        read(videos, tmp_path, facts=table(tmp_path / "facts.csv", *lines))


def test_equal_rows_of_facts_are_one(videos, tmp_path):
    facts = table(tmp_path / "facts.csv", "file,licence", "a.mp4,cc0", "a.mp4,cc0", "open_source.b.mp4,mit")
    assert sorted(one.licence for one in read(videos, tmp_path, facts=facts).facts.values()) == ["cc0", "mit"]


@pytest.mark.parametrize(
    "written", ["{0}/a.mp4\n{0}/inside/open_source.b.mp4\n", "\ufeff# mine\r\n../my videos/a.mp4\r\n\r\n{0}/inside/open_source.b.mp4"]
)
def test_videos_of_a_list_have_the_captions_beside_them_wherever_the_list_lies(videos, tmp_path, written):
    folder = tmp_path / "lists"
    folder.mkdir()
    shutil.copytree(videos, tmp_path / "my videos")
    (folder / "other.txt").write_text("is beside the list")
    (folder / "list.txt").write_bytes(written.format(tmp_path / "my videos").encode())
    found = read(folder / "list.txt", tmp_path)
    assert {one.captions[0].text for one in found.facts.values()} == {"number 0", "number 1"}
    assert not found.told and not found.refused
    facts = table(folder / "list.csv", "file,licence", "../my videos/a.mp4,cc0", f"{tmp_path}/my videos/inside/open_source.b.mp4,mit")
    assert sorted(one.licence for one in read(facts, tmp_path, facts=facts).facts.values()) == ["cc0", "mit"]


def test_messages_about_a_folder_have_the_keys_of_this_command_and_the_names_as_they_are(videos, tmp_path):
    found = read(videos, tmp_path, leave_out=("*open_source*.mp4",))
    assert ("inside/open_source.b.mp4", "leave_out names it") in found.passed
    with pytest.raises(ValueError, match=r"^leave_out: no file is called x; there are .*open_source\.b"):
        read(videos, tmp_path, leave_out=("x",))


# Before the work, and after it


@pytest.mark.parametrize(
    ("changed", "until", "why"),
    [
        (
            {"selection": SelectionRules(rules={"motion": (1, None)})},
            None,
            r"select\.rules\.motion: no clip has a score 'motion', but 'object_motion'",
        ),
        ({"selection": SelectionRules(opt_out="nowhere")}, None, r"select\.opt_out=nowhere does not exist"),
        ({"duplicates": Deduplication(overlap=0.5, against=[Path("nowhere")])}, None, r"duplicates\.against: nowhere is no dataset"),
    ],
)
def test_settings_that_would_end_hours_of_work_are_refused_before_it(videos, tmp_path, changed, until, why):
    with pytest.raises(ValueError, match=why):
        curation(videos, tmp_path / "work", **changed).run(until=until)
    assert not list(tmp_path.glob("work/*-*"))


def test_what_is_no_name_of_a_folder_is_refused(videos, tmp_path, monkeypatch, capsys):
    from sora.cli import run

    for name in ("../x", "a/b", "/x", "..", ".hidden", "a..b"):
        monkeypatch.setattr("sys.argv", ["sora", f"input={videos}", f"output={tmp_path / 'work'}", f"dataset={name}"])
        assert run("curate") == 2 and "is no name for a folder in output" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_where_nothing_can_be_made_the_page_says_why(videos, tmp_path, monkeypatch, capsys):
    from sora.cli import run

    work = tmp_path / "work"
    words = [f"input={videos}", f"output={work}", "cuts=none", "engine=serial", "select.rules={luma: [0.999,null]}"]
    monkeypatch.setattr("sys.argv", ["sora", *words])
    assert run("curate") == 2
    told = capsys.readouterr().err
    assert "not one clip is kept (2 luma < 0.999)" in told and str(work / "curation.html") in told
    assert (work / "report.json").is_file() and "luma" in (work / "curation.html").read_text()
    assert not list(work.glob("dataset-*"))


@pytest.mark.slow
def test_one_video_alone_is_not_split_and_the_key_is_that_of_this_command(videos, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(videos / "a.mp4", tmp_path / "alone")
    done = curation(tmp_path / "alone", tmp_path / "work", shards=Shards(held_out=0.5, shard_mb=1, licence="")).run()
    assert done.dataset is None and "set held_out=0" in done.nothing and "source." not in done.nothing
    assert done.funnel is not None and done.funnel.kept == 1
    assert curation(tmp_path / "alone", tmp_path / "work").run().dataset is not None


# A dataset's clips are judged by their own rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "set"
    rows = [
        {"source": "family/a.mp4", "licence": "cc0", "consent": "yes"},
        {"source": "b.mp4", "licence": "mit", "extra": {"sha256_of_source": "b" * 64}},
        {"source": "c.mp4", "licence": "cc0", "extra": {"synthetic": True, "origin": "https://example.org/c"}},
    ]
    with DatasetWriter(folder, licence="", max_bytes=1 << 20) as writer:
        for number, row in enumerate(rows):
            frames = shot(number, 8, level=80 + 40 * number)
            facts = ClipFacts(key=f"k{number}", frames=8, fps=8.0, height=36, width=64, split="train", **row)
            writer.write(facts, encode(frames, 8.0, lossless=False))
        writer.finish({})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "lines", "left"),
    [
        ({}, ["family/*"], {"k0": "opt-out"}),
        ({}, ["B" * 64], {"k1": "opt-out"}),
        ({}, ["*://example.org/*"], {"k2": "opt-out"}),
        ({}, ["video-*"], {}),
        ({"licences": ("cc0",)}, [], {"k1": "licence"}),
        ({"consents": ("yes",)}, [], {"k1": "consent", "k2": "consent"}),
        ({"synthetic": "refuse"}, [], {"k2": "synthetic"}),
    ],
)
def test_rules_on_where_a_clip_is_from_read_its_own_row(dataset, tmp_path, rules, lines, left):
    folder = shutil.copytree(dataset, tmp_path / "set")
    out = table(tmp_path / "out.txt", *lines)
    one = curation(folder, tmp_path / "work", selection=SelectionRules(opt_out=str(out), **rules))
    done = one.run()
    assert {row["key"]: row["rule"] for _, rows in decided(one.select, done.decision, done.inputs) for row in rows if row["rule"]} == left
    assert done.sets is not None and len(Index.open(folder, selection=done.sets.selection)) == 3 - len(left)


def test_what_a_dataset_cannot_use_is_refused(dataset, tmp_path):
    for key, value in (("facts", Path("f.csv")), ("captions", Path("c.csv")), ("leave_out", ("x",))):
        with pytest.raises(ValueError, match=rf"^{key}.* is for videos"):
            read(dataset, tmp_path, **{key: value})
    for until in ("probe", "cuts", "transcode"):
        with pytest.raises(ValueError, match=f"until={until}: a dataset's clips"):
            curation(dataset, tmp_path / "work", shards=Shards(held_out=0.0, shard_mb=1, licence="")).run(until=until)


@pytest.mark.parametrize(
    "word", ["cuts=fixed", "spans.trim_frames=3", "transcode.size=64", "held_out=0.1", "licence=mit", "shard_mb=5", "facts=f.csv"]
)
def test_a_key_that_a_dataset_does_not_need_is_refused_where_it_was_typed(dataset, tmp_path, monkeypatch, capsys, word):
    from sora.cli import run

    words = [f"input={dataset}", f"output={tmp_path / 'work'}"]
    monkeypatch.setattr("sys.argv", ["sora", *words, word])
    key = word.partition("=")[0]
    assert run("curate") == 2 and f"{key}" in (told := capsys.readouterr().err) and f"has no effect as input={dataset} is a dataset" in told
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["duplicates.embeddings=nsfw"], "gives scores and no embeddings; clip gives them"),
        (["duplicates.embeddings=clop"], "there is no scorer clop (did you mean 'clip'?)"),
        (["duplicates.embeddings=clip", "duplicates.find=false"], "duplicates.embeddings has no effect with duplicates.find=false"),
        (["duplicates.embeddings=clip", "duplicates.similarity=2"], "duplicates.similarity=2 must lie in (0, 1]"),
        (["duplicates.similarity=0.8"], "duplicates.similarity=0.8 has no effect without duplicates.embeddings="),
    ],
)
def test_embeddings_that_cannot_be_are_told(videos, tmp_path, monkeypatch, capsys, words, why):
    from sora.cli import run

    monkeypatch.setattr("sys.argv", ["sora", f"input={videos}", f"output={tmp_path / 'work'}", "cuts=none", *words])
    assert run("curate") == 2 and why in capsys.readouterr().err


def test_a_mistyped_action_is_told(monkeypatch, capsys):
    from sora.cli import run

    monkeypatch.setattr("sys.argv", ["sora", "staus", "work"])
    assert run("curate") == 2 and "did you mean 'status'" in capsys.readouterr().err


# Results that others changed


TABLE = pa.table(
    {
        "number": [0, 1, 2],
        "score": [0.5, None, float("nan")],
        "still": [b"x", None, b""],
        "m": pa.array([[("a", 1.0)], [], None], pa.map_(pa.string(), pa.float64())),
    }
)


def changed(table, how):
    if how == "value":
        return table.set_column(1, "score", pa.array([0.6, None, float("nan")]))
    if how == "row":
        return table.slice(1)
    if how == "empty":
        return table.slice(0, 0)
    if how == "column":
        return table.drop_columns(["still"])
    return table.set_column(0, "number", table["number"].cast(pa.float64())) if how == "kind" else table


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("group_rows", [1, 4096])
def test_a_result_that_was_changed_is_refused_however_it_is_read(tmp_path, how, group_rows):
    results = Results(tmp_path / CurationStage("scores", 1).folder)
    results.write("a", TABLE, group_rows=group_rows)
    assert repr(results.read("a").to_pylist()) == repr(TABLE.to_pylist())
    assert sum(len(group) for group in results.groups("a")) == 3
    assert results.read("a", only=lambda name: name == "still")["still"].to_pylist() == [b"x", None, b""]
    path = results.path("b" if how == "place" else "a")
    said = pq.read_metadata(results.path("a")).metadata
    with pq.ParquetWriter(path, changed(TABLE, how).schema) as writer:
        writer.write_table(changed(TABLE, how), row_group_size=group_rows)
        writer.add_key_value_metadata({"sora.result": said[b"sora.result"].decode()})
    for reading in (lambda: results.read(path.stem), lambda: list(results.groups(path.stem))):
        with pytest.raises(ValueError, match="not as sora curate wrote it; remove it"):
            reading()


@pytest.mark.parametrize("said", [None, "[]", "{}", '{"number": 1}', "{", '{"number": "", "score": [], "still": null, "m": {}}'])
def test_a_footer_that_says_nothing_sound_is_refused(tmp_path, said):
    results = Results(tmp_path / "scores-0")
    results.path("a").parent.mkdir()
    with pq.ParquetWriter(results.path("a"), TABLE.schema) as writer:
        writer.write_table(TABLE)
        if said is not None:
            writer.add_key_value_metadata({"sora.result": said})
    with pytest.raises(ValueError):
        results.read("a")


def test_a_plan_of_another_form_is_refused(tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "curation.json").write_text(json.dumps({"version": 1, "stages": ["probe-0"]}))
    for columns in ({"x": [1]}, {"name": [None], "told": ["a"]}, {"name": [1], "told": [2]}):
        pq.write_table(pa.table(columns), tmp_path / "plan/probe-0-0-of-1.parquet")
        with pytest.raises(ValueError, match="not as sora curate wrote it"):
            list(progress(tmp_path))


def test_bars_of_equal_values_are_seen_beside_a_limit_far_away():
    from sora.report.plots import histogram

    drawn = histogram([0.0] * 30 + [0.0006], across="text", limits=[0.02])
    bars = [path for path in re.findall(r'<path d="([^"]*)"', drawn) if path.count("L") == 3]
    xs = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)] for path in bars]
    assert max(max(x) - min(x) for x in xs if x) > 4 and np.isfinite(sum(map(sum, xs)))
