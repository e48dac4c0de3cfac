"""A run goes on with the captions and the clips that it began with, whatever was added beside its shards since."""

import json
import shutil

import pytest

from sora.assembly.load import load_diffusion
from sora.assembly.validation import held_out_of
from sora.cli import run
from sora.data.index.index import Caption, Index
from sora.data.index.set_writers import CaptionSetWriter, SelectionWriter
from sora.system.files import write_json
from tests.test_stored import ROUNDING, losses
from tests.trained import stored_artefacts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return stored_artefacts(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def work(stored, tmp_path):
    """The stored run as it stood at step 10, and its dataset."""
    folder = shutil.copytree(stored, tmp_path / "work")
    shutil.rmtree(folder / "run/checkpoints/step-00000020")
    (folder / "run/metrics.jsonl").unlink()
    return folder


def captioned(data, name="later"):
    """A set of captions that replaces one of every clip; nobody has encoded them."""
    index = Index.open(data, sets=[])
    made = CaptionSetWriter(data, name, dataset=index.dataset_fingerprint)
    for shard in range(len(index.described["shards"])):
        rows = index.rows_of_shard(shard)
        said = {index.key(row): [Caption(one.kind, f"{name} {row}", one.captioner) for one in index.captions(row)] for row in rows}
        made.write(shard, said)
    return made.finish({})


def recorded(work, sets):
    info = json.loads((work / "run/run.json").read_text())
    write_json(work / "run/run.json", info | {"sets": sets})


def resumed(work, *more):
    return run("train", [f"resume={work / 'run'}", f"data.folders=[{work / 'data'}]", *more])


def test_a_set_that_is_added_during_a_run_changes_none_of_its_losses(work):
    expected = json.loads((work / "expected.json").read_text())["losses"]["run"]
    recorded(work, [{}])
    captioned(work / "data")
    assert resumed(work) == 0
    found = losses(work / "run")
    assert len(found) == 10 and found == pytest.approx({step: expected[step] for step in found}, rel=ROUNDING)
    assert json.loads((work / "run/run.json").read_text())["sets"] == [{}]
    loaded, asked = load_diffusion(work / "run"), {"split": "heldout", "count": 2, "budget": 4096, "max_clips": 8, "seed": 0}
    (index,) = held_out_of(loaded, work / "data", **asked).indexes  # else captions would be read that nobody encoded
    assert index.sets.names == ()
    with pytest.raises(ValueError, match="are not encoded"):
        held_out_of(loaded, work / "data", **asked, sets=["later"])


def test_sets_that_are_gone_changed_or_given_on_purpose_are_told_by_name(work, capsys):
    path = captioned(work / "data")
    assert resumed(work) == 2  # a run of earlier code did not record its sets: all are in force, as before
    assert "are not encoded" in capsys.readouterr().err
    recorded(work, [{"later": "0" * 64}])
    assert resumed(work) == 2
    told = capsys.readouterr().err
    assert "captions-later.json is not the set that" in told and "the run's is 000000000000" in told
    assert told.endswith("data.sets=[…] resume_allow=[depends.data]\n")
    path.unlink()
    assert resumed(work) == 2
    assert "is trained with the set of captions later, and" in capsys.readouterr().err
    captioned(work / "data", "more")
    recorded(work, [{}])
    assert resumed(work, "data.sets=[more]") == 2
    told = capsys.readouterr().err
    assert "run sora encode again: sora encode " in told and told.endswith(f"data={work / 'data'} sets=[more]\n")
    (work / "data/captions-more.json").unlink()
    assert resumed(work, "data.sets=[nobody]") == 2
    assert "data.sets: no dataset of data.folders has a set of captions 'nobody'; they have none" in capsys.readouterr().err


def test_a_new_run_records_its_sets_and_tells_what_its_selection_keeps(work, capsys):
    index = Index.open(work / "data")
    made = SelectionWriter(index, "good")
    for shard in range(len(index.described["shards"])):
        keys = index.shard_keys(shard)
        made.write(shard, {key: "" if index.row(number).split != "train" or number % 3 else "too dark" for number, key in enumerate(keys)})
    made.finish({})
    kept = Index.open(work / "data", "train", selection="good")
    told = f"data: {kept.selected[0]}"
    words = [
        f"data.folders=[{work / 'data'}]",
        f"vae={work / 'vae_run/vae'}",
        "text.width=16",
        "text.depth=1",
        "dit.width=16",
        "dit.heads=1",
    ]
    words += ["experiment=toy", "data.selection=good"]
    assert run("plan", words) == 0
    planned = capsys.readouterr().out
    assert told in planned and "too dark)" in told
    assert run("train", [*words, f"output={work / 'new'}", "steps=1"]) == 0
    assert told in capsys.readouterr().out
    info = json.loads((work / "new/run.json").read_text())
    assert info["sets"] == [{}] and info["depends"]["selection"] == kept.selection.clips[:12]
    assert run("train", [f"resume={work / 'new'}", "data.selection=null", "steps=2", "resume_allow=[steps]"]) == 2
    assert "data.selection" in capsys.readouterr().err
    assert run("plan", [*words[:-1], "data.selection=best"]) == 2
    assert "has no selection 'best'; it has good" in capsys.readouterr().err
    out = [f"checkpoint={work / 'run'}", f"data={work / 'data'}", "metrics=[loss]", f"output={work / 'scores'}"]
    assert run("evaluate", [*out, "selection=good", "split=heldout"]) == 0
    scores = json.loads((work / "scores/scores.json").read_text())
    assert scores["protocol"]["dataset"]["selection"] == kept.selection.clips
