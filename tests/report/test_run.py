"""`sora report`: a page of a run at any moment, of several side by side; half-written files and strangers' words spoil nothing."""

import json

import numpy as np
import pytest

from sora.cli import run
from sora.runs.run import open_run
from sora.system.files import write_json
from sora.video.files import write
from tests.report.test_page import HOSTILE, read
from tests.test_compare import swept
from tests.trained import world_dataset

pytestmark = pytest.mark.slow


def sampled(folder, prompt):
    write(folder / "0000-x.mp4", np.full((5, 64, 96, 3), 9, np.uint8), 8.0, lossless=False)
    write_json(folder / "0000-x.json", {"prompt": prompt, "width": 24, "height": 16, "frames": 5, "fps": 8.0})


@pytest.fixture
def home(tmp_path):
    """A run that stands at step 40 of 100."""
    home = swept(tmp_path, {"2026 ü": 0.5}, step=40, steps=100) / "2026 ü"
    lines = [
        {"step": step, "loss": 1.0 / step, "lr": 0.1, "tokens_per_second": 5.0, "step_seconds": 2.0, "samples": step}
        for step in (10, 20, 40)
    ]
    (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    measured = [{"step": step, "weights": "ema", "loss": 0.5, "kvd": 0.1} for step in (10, 20)]
    (home / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
    phases = {"start": 1.0, "data": 1.0, "step": 7.0, "checkpoint": 0.5, "evaluation": 0.5, "end": 0.0, "wasted": 0.0, "down": 0.0}
    (home / "goodput.jsonl").write_text(json.dumps({"began": 1.0, "ended": 11.0, "first": 0, "last": 40, **phases, "undone": []}) + "\n")
    (home / "events.jsonl").write_text(json.dumps({"time": 1.0, "event": "skipped", "reason": HOSTILE[0]}) + "\n")
    sampled(home / "samples/step-00000010-ema", HOSTILE[0])
    sampled(home / "samples/step-00000020-ema", "a late one")
    (home / "samples/step-00000020-ema/0001-y.mp4").write_bytes(b"half")  # its sidecar is not there yet
    return home


def test_the_page_of_a_run_that_trains_tells_where_it_stands_and_holds_all_of_it(home, capsys):
    assert run("report", [str(home)]) == 0
    assert capsys.readouterr().out.strip() == str(home / "report.html")
    page = read((home / "report.html").read_text())
    words = "".join(page.words)
    for told in ("stands at step 40 of 100", "2\u00a0min", "70 %", "Learning rate", "Held-out loss", "70.0 % went into steps", HOSTILE[0]):
        assert told in words, told
    assert words.index("Step 20") < words.index("a late one") < words.index("Step 10")
    assert f"sora train 'resume={home}'" in words and "24×16, 5 frames" in words
    assert [dict(attributes)["href"] for tag, attributes in page.tags if tag == "a" and dict(attributes)["href"].startswith("./")] == [
        f"./{name}" for name in ("config.yaml", "metrics.jsonl", "evaluation.jsonl", "goodput.jsonl", "events.jsonl")
    ]
    assert "script" not in [tag for tag, _ in page.tags]


def test_the_page_of_a_run_that_was_moved_with_its_data_names_them_where_they_lie(home):
    """As resume= finds them; the command that it ends with can be given."""
    info = json.loads((home / "run.json").read_text()) | {"place": {"folder": "/gone/x", "from": "/gone"}}
    write_json(home / "run.json", info)
    write_json(home / "config.yaml", json.loads((home / "config.yaml").read_text()) | {"data": {"folders": ["data/world"]}})
    assert run("report", [str(home)]) == 0
    words = "".join(read((home / "report.html").read_text()).words)
    assert "not to be read from here" in words and f"'checkpoint={home}' data=FOLDER" in words
    world_dataset(home.parent / "data/world", clips=3)
    open_run(home).seal()  # what its own user wrote
    assert run("report", [str(home)]) == 0
    assert f"data={home.parent / 'data/world'}" in "".join(read((home / "report.html").read_text()).words)


def test_a_page_is_written_again_until_the_run_is_whole(home, monkeypatch, capsys):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert 'http-equiv="refresh" content="30"' in (home / "report.html").read_text()
        with (home / "metrics.jsonl").open("a") as file:
            file.write('\n{"step": 100, "loss": 0.1}\n' if len(slept) > 1 else "")

    monkeypatch.setattr("time.sleep", sleep)
    assert run("report", [str(home), "watch=30"]) == 0
    assert (
        slept == [30.0, 30.0]
        and "refresh" not in (home / "report.html").read_text()
        and "which is whole" in (home / "report.html").read_text()
    )


def test_runs_and_folders_of_samples_stand_side_by_side(home, tmp_path, capsys):
    sampled(tmp_path / "other", "from elsewhere")
    assert run("report", [str(home), str(tmp_path / "other"), f"output={tmp_path / 'two.html'}"]) == 0
    words = "".join(read((tmp_path / "two.html").read_text()).words)
    assert "a late one" in words and "from elsewhere" in words and "2 side by side" in words
    (tmp_path / "bare").mkdir()
    assert run("report", [str(home), str(tmp_path / "bare"), f"output={tmp_path / 'three.html'}"]) == 2
    assert "bare holds no run, no scores and no samples" in capsys.readouterr().err and not (tmp_path / "three.html").exists()
    sweep = swept(tmp_path / "sw", {"seed=0": 1.0, "seed=1": 3.0, "seed=0,x=1": 1.0})
    assert run("report", [str(each) for each in sorted(sweep.iterdir())]) == 0
    assert "training loss" in (sweep / "report.html").read_text()


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    home = tmp_path / "new"
    write_json(home / "run.json", {"kind": "vae"})
    (home / "config.yaml").write_text("steps: 10")
    assert run("report", [str(home)]) == 0 and "stands at step 0 of 10" in (home / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no run, no scores and no samples"),
        ([], "needs FOLDER …: sora report FOLDER …"),
        ([".", "watch=30"], "watch= follows one run"),
        ([".", "watch=0"], "watch=0: give the seconds"),
        ([".", "clips=0"], "clips=0: give 1 or more"),
        ([".", "output=."], "output=. is what place= names"),
    ],
)
def test_what_has_no_page_is_told(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert run("report", words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_page_of_several_takes_the_place_of_no_other_page_and_a_file_of_scores_is_its_folder(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = home.parent
    write_json(whole / "scores.json", {"figures": {}, "stages": []})  # a quickstart's, which no evaluation wrote
    for name in ("samples", "more"):
        sampled(whole / name, name)
    for words in ([str(whole)], [str(whole / "scores.json")]):
        assert run("report", words) == 2
        assert "holds no scores of sora evaluate" in capsys.readouterr().err
    (whole / "report.html").write_text("the quickstart's")
    several = [str(whole / "samples"), str(whole / "more")]
    assert run("report", several) == 2 and "is the page of" in capsys.readouterr().err
    assert (whole / "report.html").read_text() == "the quickstart's"
    assert run("report", [*several, "output=both.html"]) == 0 and (tmp_path / "both.html").is_file()
