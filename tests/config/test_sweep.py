"""`-m`: no two runs share a folder, values are as typed, folders of a sweep are read as what they are, and it ends with a table."""

import json
import threading
from pathlib import Path

import pytest

from sora import cli
from sora.config.command_line import sweep
from sora.config.command_line.sweep import LONGEST, RECORD, name_of, rejoined, several, split, words_of
from sora.system.files import write_json
from sora.system.locks import alone_in
from tests.test_compare import swept

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=0,1", ["seed=0", "seed=1"]),
        ("seed=0, 1", ["seed=0", "seed=1"]),
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("output=2026_11_29,0x10", ["output=2026_11_29", "output=0x10"]),  # as typed, not as a number
        ("data.folders=[a,b],[c]", ["data.folders=[a,b]", "data.folders=[c]"]),
        ("plan.shapes=[[9,64,64],[1,8,8]]", ["plan.shapes=[[9,64,64],[1,8,8]]"]),
        ("prompt='a cat, sitting',\"b, c\"", ["prompt='a cat, sitting'", 'prompt="b, c"']),
        ("prompt=it's, that", ["prompt=it's", "prompt=that"]),
        ("vae=runs/width=3,runs/width=4", ["vae=runs/width=3", "vae=runs/width=4"]),
        ("plain", ["plain"]),
    ],
)
def test_a_word_of_a_sweep_stands_for_its_values_as_typed(word, values):
    assert several(word) == values


@pytest.mark.parametrize("word", ["seed=1,,2", "seed=1,2,", "seed=range(x"])
def test_a_word_that_cannot_be_read_is_named(word):
    with pytest.raises(ValueError, match="cannot be read" if "(" in word else word):
        several(word)


def test_folders_of_a_sweep_are_one_value_each_and_a_pattern_is_those_that_fit_in_counting_order(tmp_path, monkeypatch):
    for name in ("d=a,seed=2", "d=a,seed=10", "d=b,seed=2", "[odd]"):
        (tmp_path / "o" / name).mkdir(parents=True)
    (tmp_path / "o" / RECORD).touch()
    monkeypatch.chdir(tmp_path)
    assert several("checkpoint=o/d=a,seed=2,o/d=a,seed=10,x") == ["checkpoint=o/d=a,seed=2", "checkpoint=o/d=a,seed=10", "checkpoint=x"]
    assert several("checkpoint=o/d=a*") == ["checkpoint=o/d=a,seed=2", "checkpoint=o/d=a,seed=10"]
    assert len(several("checkpoint=o/*")) == 4 and several("checkpoint=o/[odd]") == ["checkpoint=o/[odd]"]
    with pytest.raises(ValueError, match="no folder is called so"):
        several("checkpoint=nowhere/*")
    assert rejoined(["d=a", "seed=2"]) == ["d=a", "seed=2"]  # no such path here


def test_no_two_runs_share_a_folder_whatever_their_words_and_names_fit_a_file_system():
    words = ["prompt=a b,a_b,a/b", "samples=1,2", "output=o"]
    found = split("sample", ["checkpoint=x", *words], [])
    assert len({str(place) for place in found.places}) == 6 == len(found.runs)
    assert [run[-1] for run in found.runs] == [f"output={place}" for place in found.places]
    letters = [name_of([f"prompt={'ü' * 300}{end}"]) for end in "ab"]
    assert len(set(letters)) == 2 and all(len(name.encode()) <= LONGEST for name in letters)
    with pytest.raises(ValueError, match="a value stands there twice"):
        split("sample", ["checkpoint=x", "prompt=a", "samples=1,1"], [])


def test_evaluations_of_several_runs_stay_in_these_and_several_of_one_run_are_told_apart_within_it():
    assert split("evaluate", ["checkpoint=a,b", "data=x"], []).places == [Path("a"), Path("b")]
    found = split("evaluate", ["checkpoint=a,b", "data=x", "steps=3,4"], [])
    assert found.places == [Path(f"{run}/evaluation/steps={steps}") for run in "ab" for steps in (3, 4)]
    assert found.words == [["steps=3"], ["steps=4"]] * 2


def test_words_are_those_that_were_recorded_else_those_of_the_name_and_the_run_around_an_evaluation_tells_its_own(tmp_path):
    long = name_of([f"prompt={'x' * 300}", "seed=3"])
    write_json(tmp_path / RECORD, {"runs": {long: ["prompt=xxx", "seed=3"]}})
    assert words_of(tmp_path / long) == {"prompt": "xxx", "seed": "3"}
    assert words_of(tmp_path / "plan.shapes=__9,64,64__,seed=1") == {"plan.shapes": "__9,64,64__", "seed": "1"}
    assert words_of(tmp_path / "density=mode" / "evaluation" / "steps=3") == {"density": "mode", "steps": "3"}
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match="remove it"):
        words_of(tmp_path / long)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """`sora train` that leaves a run, or fails where the seed is 9."""
    monkeypatch.chdir(tmp_path)

    def call(command, patience):
        place = next(word.partition("=")[2] for word in command if word.startswith("output="))
        if "seed=9" in command:
            return 1
        home, _, name = place.rpartition("/")
        swept(Path(home), {name: 2.0}, data={"split": "train", "folders": ["data/x y"]})
        return 0

    monkeypatch.setattr(cli, "run_command", call)
    return ["train", "-m", "experiment=toy", "vae=v", "data.folders=[d]", "density=uniform,mode", "output=my runs"]


def test_a_sweep_ends_with_its_table_and_commands_that_lead_on(trained, capsys):
    assert cli.main([*trained, "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert "[1/4] sora train experiment=toy vae=v 'data.folders=[d]' density=uniform seed=0 'output=my runs/density=uniform,seed=0'" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith(("uniform", "mode"))] == [["uniform", "2"], ["mode", "2"]]
    assert "this table again: sora compare 'my runs'" in out
    assert "scored alike: sora evaluate -m 'checkpoint=my runs/*' 'data=data/x y'" in out
    assert len(json.loads(Path("my runs", RECORD).read_text())["runs"]) == 4
    assert cli.main(["compare", "my runs"]) == 0 and "uniform" in capsys.readouterr().out


def test_a_sweep_with_failed_runs_tells_which_lack(trained, capsys):
    assert cli.main([*trained, "seed=0,9"]) == 1
    out, err = capsys.readouterr()
    assert "2 of 4 runs failed: 2, 4" in err and out.count("1 of 2") == 2
    assert "left out of the means: density=mode,seed=9: it is not there" in out


def test_a_sweep_whose_runs_all_failed_or_that_was_stopped_draws_no_table_of_nothing(trained, capsys, monkeypatch):
    assert cli.main([*trained, "seed=9"]) == 1
    assert "this table" not in capsys.readouterr().out
    assert cli.main(["compare", "my runs"]) == 2
    assert "none of the runs of this sweep (2) has begun" in capsys.readouterr().err

    def interrupted(command, patience):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    assert cli.main([*trained, "seed=0,1"]) == 130


def test_a_sweep_that_is_submitted_tells_how_to_see_its_table(trained, capsys, monkeypatch):
    monkeypatch.setattr(cli, "submitted", lambda *given: 0)
    assert cli.main([*trained, "launcher=slurm", "seed=0,1"]) == 0
    assert "their table, also while they run: sora compare 'my runs'" in capsys.readouterr().out
    assert len(sweep.recorded(Path("my runs"))) == 4


def test_words_of_two_sweeps_into_one_folder_are_kept_and_each_waits_while_another_writes(tmp_path, monkeypatch):
    sweeps = [sweep.Sweep([[]], [tmp_path / "a" / f"seed={seed}"], [[f"seed={seed}"]], named=True) for seed in (0, 1)]
    with alone_in(tmp_path / "a", "sweeping into", name=".lock-sweep"):
        with monkeypatch.context() as hurried, pytest.raises(ValueError, match="is sweeping into"):  # by one that hangs
            hurried.setattr(sweep, "PATIENCE", 0.1)
            sweeps[0].record()
        second = threading.Thread(target=sweeps[1].record)
        second.start()
        second.join(0.1)
        assert second.is_alive() and not sweep.recorded(tmp_path / "a")
    second.join()
    sweeps[0].record()
    assert set(sweep.recorded(tmp_path / "a")) == {"seed=0", "seed=1"} and [path.name for path in (tmp_path / "a").iterdir()] == [RECORD]


def test_parts_of_one_job_write_into_one_output_and_sweep_alone(tmp_path):
    (tmp_path / "videos").mkdir()
    said = [f"input={tmp_path / 'videos'}", f"output={tmp_path / 'work'}"]
    found = split("curate", ["part=[0,2],[1,2]", *said], [])
    assert [run[0] for run in found.runs] == ["part=[0,2]", "part=[1,2]"]
    assert all(run[1:] == said for run in found.runs)
    with pytest.raises(ValueError, match=r"a sweep over part= shares the work of one output"):
        split("curate", ["part=[0,2],[1,2]", "held_out=0,0.1", *said], [])
