"""Results that others wrote, with right hashes: they end in a dataset or in one line that names the file, and never in a traceback."""

import os
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.curation.curating import Curated
from sora.curation.results import Results
from sora.curation.steps.deduplicating import Deduplication
from sora.curation.steps.modelling import Embedding, ModelScoring
from tests.curation.material import CheapScoring, Hues, Letters, a_dataset, curation, folder_of_videos

pytestmark = pytest.mark.slow
STAGES = ("probe", "cuts", "clips", "scores", "score_letters", "embed_hues", "duplicates", "select", "transcode")
AFTER = {
    "duplicates": ("select", "dataset"),
    "select": ("dataset",),
    "transcode": ("dataset",),
}  # what is made anew; of others, all of these


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A curation of videos, and one of a dataset, with all results: (input, work folder) for each."""
    home = tmp_path_factory.mktemp("forged")
    videos, dataset = folder_of_videos(home / "videos", 2), a_dataset(home / "set")
    shutil.copy(videos / "clip 0 ü.mp4", videos / "again.mp4")
    with open(videos / "again.mp4", "ab") as file:
        file.write(b"\0\0\0\x08free")  # a copy of other bytes
    found = {"videos": (videos, home / "of videos"), "set": (dataset, home / "of a set")}
    for place, work in found.values():
        run(place, work)
    return found


def run(place, work) -> Curated:
    return of_all_stages(place, work).run()


def of_all_stages(place, work):
    duplicates = Deduplication(overlap=0.5, embedding=Embedding("hues", Hues()), similarity=0.99)
    return curation(place, work, scoring=(CheapScoring(), ModelScoring("letters", Letters())), duplicates=duplicates)


def forged(folder, table):
    """Put a table into the place of the largest result of a folder, with the hashes that it needs; the path."""
    path = max(folder.glob("*.parquet"), key=lambda path: path.stat().st_size)
    Results(folder).write(path.stem, table)
    return path


def of(folder):
    return pq.read_table(max(folder.glob("*.parquet"), key=lambda path: path.stat().st_size)).replace_schema_metadata(None)


def mutants(table, draw):
    """Tables that differ from one in columns, rows, types and values, each with what it is."""
    names = table.column_names
    yield "no row", table.slice(0, 0)
    yield "rows twice", pa.concat_tables([table, table])
    yield "backwards", table.take(list(range(len(table)))[::-1])
    yield "one row less", table.slice(1)
    yield "columns backwards", table.select(names[::-1])
    yield "one column more", table.append_column("more", pa.array([1] * len(table)))
    for name in names:
        yield f"without {name}", table.drop_columns([name])
        kind = table.schema.field(name).type
        yield f"{name} of texts", put(table, name, pa.array(["x"] * len(table)))
        yield f"{name} null", put(table, name, pa.nulls(len(table), kind))
        for value in values(kind, draw):
            yield f"{name} = {value!r:.40}", put(table, name, pa.array([value] * len(table), kind))


def values(kind, draw):
    if pa.types.is_integer(kind):
        return (-1, 0, 1, 2**31 - 1)
    if pa.types.is_floating(kind):
        return (float("nan"), float("inf"), -1.0, 0.0, 1e300)
    if pa.types.is_string(kind):
        return ("", "x", "\x1b[31m<script>", "a" * 3000, "{}", "[" * 3000)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return (b"", b"x", draw.randbytes(3000))
    if pa.types.is_map(kind):
        return ([], [("luma", None)], [("x" * 1000, float("nan"))])
    return (True, False)


def put(table, name, column):
    return table.set_column(table.column_names.index(name), name, column)


def every(made, stage):
    """The folders of a stage that have a result with rows, each with its input."""
    for place, work in made.values():
        for folder in sorted(work.glob(f"{stage}-*")):
            if len(of(folder)):
                yield place, folder


def copies(place, work, to):
    """A copy of an input and of its work folder."""
    return shutil.copytree(place, to / place.name), shutil.copytree(work, to / "work")


@pytest.mark.parametrize("stage", STAGES)
def test_a_result_of_another_form_is_refused_in_one_line_when_it_is_read(made, stage, tmp_path):
    draw, refused, count = random.Random(stage), 0, 0
    for place, folder in every(made, stage):
        one = of_all_stages(place, folder.parent)
        one.run()
        forms = {step.stage.name: step.function.form for step in one.steps}
        forms |= {"select": one.select.form, "transcode": one.transcode.function.form, "duplicates": Deduplication.form}
        results = Results(tmp_path / folder.name, forms[stage])
        results.write("a", of(folder))
        assert results.read("a").equals(of(folder)) and sum(map(len, results.groups("a"))) == len(of(folder))
        for what, table in mutants(of(folder), draw):
            count += 1
            Results(results.folder).write("a", table)
            for told in refusals(results, "a"):
                refused += 1
                assert "a.parquet is not as sora curate wrote it: it" in told and len(told) < 600, (what, told)
    assert refused > count / 2


def refusals(results, unit):
    """What is said where a result is read, as a whole and group by group."""
    found = []
    for reading in (lambda: results.read(unit), lambda: list(results.groups(unit))):
        try:
            reading()
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_wrote_is_read_and_what_others_wrote_ends_in_one_line(made, stage, tmp_path):
    draw, found, refused, wrong = random.Random(stage), list(every(made, stage)), 0, []
    assert found
    for place, folder in found:
        tries = list(mutants(of(folder), draw))
        for number, (what, table) in enumerate(draw.sample(tries, min(MOST, len(tries)))):
            home = tmp_path / f"{folder.name}-{number}"
            there, work = copies(place, folder.parent, home)
            for name in AFTER.get(stage, ("duplicates", "select", "transcode", "dataset")):
                for path in work.glob(f"{name}-*"):
                    shutil.rmtree(path)
            path = forged(work / folder.name, table)
            try:
                assert run(there, work).funnel is not None
            except ValueError as error:
                refused += 1
                if (path.name not in str(error) and folder.name not in str(error) and "is kept" not in str(error)) or len(
                    str(error)
                ) > 1000:
                    wrong.append((what, str(error)[:300]))
            except Exception as error:
                wrong.append((what, repr(error)[:300]))
            shutil.rmtree(home)
    assert not wrong
    assert refused


MOST = int(os.environ.get("MOST", 12))
