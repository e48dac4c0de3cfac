"""`sora compare` sets scores of one protocol side by side, and refuses others by the field that differs."""

import csv
import json

import pytest

from sora.cli import run
from sora.metrics.protocol import Protocol
from sora.report import tables
from sora.report.scores import labels
from sora.system.files import write_json

pytestmark = pytest.mark.slow
KEY = "rand3d-v1@17f"


def protocol(*, n=20, steps=24, ddof=1, seed=0, measures=None, real=1):
    return Protocol(
        dataset={"fingerprint": "ab", "split": "heldout", "clips": 40},
        real={"n": 20, "stride": real},
        generated={"n": n, "stride": 1},
        prompts=None,
        pixels={"quantised": "rounded to 256 values"},
        extractor={"name": "rand3d-v1", "sha256": "ef"},
        distances={"ddof": ddof},
        sampling={"steps": steps, "seed": 0},
        measures=measures,
        seed=seed,
    )


def written(folder, found, *, heldout=None, rows=(), **figures):
    about = {"protocol_sha256": found.sha256, "protocol": found.to_json(), "heldout": heldout}
    write_json(folder / "scores.json", {"kind": "videos", "figures": figures, "n": 20, "rows": list(rows), **about})
    return folder


def figures(value):
    long = {f"frechet/{KEY}": value, f"frechet/{KEY}/low": value - 1, f"frechet/{KEY}/high": value + 1, f"frechet/{KEY}/floor": 0.5}
    short = {"frechet": value, "frechet_low": value - 1, "frechet_high": value + 1, "frechet_floor": 0.5, "kvd": value / 100}
    return {
        **long,
        f"kvd/{KEY}": value / 100,
        f"n_real/{KEY}": 20.0,
        "n_real": 20.0,
        **short,
        "adherence_all": 0.25,
        "adherence_all_low": 0.1,
    }


@pytest.fixture
def two(tmp_path):
    one = written(tmp_path / "one/evaluation/step-00000010", protocol(), **figures(12.5))
    written(tmp_path / "one/evaluation/step-00000005", protocol(), **figures(99.0))
    other = written(tmp_path / "other", protocol(), **figures(8.25))
    return one.parent.parent, other


def test_distances_of_motion_are_columns_once_and_by_their_own_names(tmp_path, capsys):
    """frechet/motion3d-v1@17f and motion_frechet are one figure; a VAE's stand behind its dataset's name."""
    for number in (1.0, 2.0):
        found = {"frechet": number, "kvd": number / 10}
        named = {f"{name}/{KEY}": value for name, value in found.items()} | found
        for name, value in found.items():
            named |= {f"{name}/motion3d-v1@17f": value + 5, f"{name}/motion3d-v1@17f/p": 0.5, f"motion_{name}": value + 5}
        named |= {f"a_vae_{name}": value for name, value in named.items()}
        written(tmp_path / f"{number:g}", protocol(), **named)
    places = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert run("compare", [*places, "format=csv"]) == 0
    head, first, _ = csv.reader(capsys.readouterr().out.splitlines())
    names = [f"frechet/{KEY}", f"kvd/{KEY}", "motion_frechet", "motion_kvd"]
    assert head[2:] == [*names, *(f"a_vae_{name}" for name in names)] and float(first[4]) == 6
    assert run("compare", [*places, "format=csv", "figures=[motion_kvd]"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(",motion_kvd")


def test_a_runs_newest_scores_stand_beside_a_folders(two, capsys):
    assert run("compare", [str(place) for place in two]) == 0
    head, *rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [part.strip() for part in head if part.strip()] == ["n", f"frechet/{KEY}", f"kvd/{KEY}", "adherence_all"]
    told = [[part.strip() for part in row if part.strip()] for row in rows]
    assert told == [["one", "20", "12.5 [11.5, 13.5]", "0.125", "0.25"], ["other", "20", "8.25 [7.25, 9.25]", "0.0825", "0.25"]]


def test_other_protocols_are_refused_field_by_field_unless_they_may_differ(two, tmp_path, capsys):
    places = [str(two[1]), str(written(tmp_path / "steps", protocol(steps=50, ddof=0), **figures(7.0)))]
    assert run("compare", places) == 2
    error = capsys.readouterr().err
    *table, line = error.strip().splitlines()
    assert [row.split() for row in table if row] == [
        ["different", "other", "steps"],
        ["distances.ddof", "1", "0"],
        ["sampling.steps", "24", "50"],
    ]
    assert "differ=[distances.ddof,sampling.steps]" in line and "dataset" not in line
    assert run("compare", [*places, "differ=[sampling]"]) == 2 and "sampling.steps" not in capsys.readouterr().err
    assert run("compare", [*places, "differ=[sampling.steps,distances.ddof]", "figures=[kvd]", "format=csv"]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert head == ["", "distances.ddof", "sampling.steps", "n", f"kvd/{KEY}"]
    assert rows == [["other", "1", "24", "20", "0.0825"], ["steps", "0", "50", "20", "0.07"]]


@pytest.mark.parametrize("word", ["sampling.stepz", "sampler", "steps", "step", "Sampling", "sampling.", "dataset.fingerprint.x"])
def test_a_name_in_differ_that_no_protocol_has_is_refused_whether_or_not_it_would_matter(two, tmp_path, capsys, word):
    other = [str(two[0]), str(written(tmp_path / "steps", protocol(steps=50), **figures(7.0)))]
    for places in ([*map(str, two)], other):  # of one protocol, and of two
        assert run("compare", [*places, f"differ=[sampling.steps,{word}]"]) == 2
        error = capsys.readouterr().err
        assert f"differ=[{word}]: no field of these protocols is called so" in error and "whole ones" in error and "sampling" in error
    assert "those that differ here: sampling.steps;" in error
    for word in ("sampling.steps", "sampling", "subject.taken", "dataset,sampling.steps,seed"):
        assert run("compare", [*other, f"differ=[{word}]"]) == (2 if word == "subject.taken" else 0)


def test_large_numbers_are_told_in_full():
    """Tokens a second of a cluster, and their spread over seeds."""
    cells = {123456.0: "123500", 2262.4: "2262", -98765.4: "-98770", 0.000123456: "0.0001235", 7.0: "7", 3e12: "3e+12"}
    assert {value: tables.number(value) for value in cells} == cells
    assert [tables.told(tables.Cell(*each)) for each in ((2262.4, None, None, 291.0), (0.5, None, None, 0.0123))] == [
        "2262 ± 290",
        "0.5 ± 0.012",
    ]


def test_tables_of_every_form_hold_the_same(two, tmp_path, capsys):
    words = [*map(str, two), "figures=[frechet,frechet_floor]"]
    assert run("compare", [*words, "format=csv", f"output={tmp_path / 'out/table.csv'}"]) == 0
    (_, *rows) = csv.reader((tmp_path / "out/table.csv").read_text().splitlines())
    assert rows == [["one", "20", "12.5", "11.5", "13.5", "0.5"], ["other", "20", "8.25", "7.25", "9.25", "0.5"]]
    capsys.readouterr()
    assert run("compare", [*words, "format=markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == ["| --- | --- | --- | --- |", "| one | 20 | 12.5 [11.5, 13.5] | 0.5 |"]
    assert run("compare", [*words, "format=latex"]) == 0
    latex = capsys.readouterr().out
    assert (
        r"frechet\_floor \\" in latex and r"one & 20 & 12.5 [11.5, 13.5] & 0.5 \\" in latex and latex.startswith("\\begin{tabular}{lrrr}")
    )


def losses_of(folder, losses, *, seed=0, levels=8):
    found = protocol(seed=seed, measures={"loss": {"levels": levels}})
    mean = sum(losses.values()) / len(losses)
    return str(written(folder, found, heldout={"clips": losses}, loss=mean, loss_low=0.5 * mean, loss_high=1.5 * mean))


def test_held_out_losses_are_compared_clip_by_clip(tmp_path, capsys):
    """A model that is 1 % better on every clip is told from one that is not, though clips differ a hundred times as much."""
    one = {f"clip-{number}": 0.1 + number for number in range(12)}
    better = losses_of(tmp_path / "better", {name: 0.99 * loss for name, loss in reversed(one.items())} | {"another": 50.0})
    mixed = losses_of(tmp_path / "mixed", {name: loss * (1 + 0.02 * (-1) ** place) for place, (name, loss) in enumerate(one.items())})
    few = losses_of(tmp_path / "few", dict(list(one.items())[:2]))
    first = losses_of(tmp_path / "first", one)
    assert run("compare", [first, better, mixed, few, "format=csv"]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert head[2:] == ["loss", "loss low", "loss high", "loss change, %", "loss change, % low", "loss change, % high"]
    assert rows[0][5:] == ["", "", ""] and rows[3][5:] == ["", "", ""]
    assert [float(value) for value in rows[1][5:]] == pytest.approx([-1, -1, -1], abs=1e-9)
    change, low, high = (float(value) for value in rows[2][5:])
    assert low < 0 < high and low < change < high
    assert run("compare", [first, better]) == 0
    assert "-1 [-1, -1]" in capsys.readouterr().out and "change" not in table_of(run, capsys, [first, better, "figures=[loss_low]"])


def test_losses_of_other_noise_or_levels_are_no_pairs(tmp_path, capsys):
    one = {f"clip-{number}": 0.1 + number for number in range(12)}
    first = losses_of(tmp_path / "first", one)
    for other, differ in ((losses_of(tmp_path / "seed", one, seed=1), "seed"), (losses_of(tmp_path / "levels", one, levels=4), "measures")):
        text = table_of(run, capsys, [first, other, f"differ=[{differ}]"])
        assert "loss" in text and "change" not in text


def reconstructed(folder, values, *, change=0.0, shift=0, real=1):
    """PSNR of clips of two datasets, those of the second `change` better; shift: of the clips' names."""
    rows = [
        {"dataset": name, "key": f"clip-{number + shift}", "frames": 5, "psnr": value + change * (name == "b"), "videos": 1.0, "file": "x"}
        for name in "ab"
        for number, value in enumerate(values)
    ]
    means = {f"{name}_vae_psnr": sum(row["psnr"] for row in rows if row["dataset"] == name) / len(values) for name in "ab"}
    written(folder, protocol(measures={"psnr": "uint8"}, real=real), rows=rows, **means)
    return str(folder)


def test_reconstructions_of_the_same_clips_are_compared_clip_by_clip(tmp_path, capsys):
    """Half a decibel on every clip is told exactly, though clips lie twenty apart; other clips, or taken otherwise, are no pairs."""
    values = [20.0, 40.0, 25.0, 31.0]
    places = [reconstructed(tmp_path / "one", values), reconstructed(tmp_path / "two", values, change=0.5)]
    head, *rows = csv.reader(table_of(run, capsys, [*places, "format=csv"]).splitlines())
    told = [name for side in "ab" for name in (f"{side}_vae_psnr", *(f"{side}_vae_psnr change{end}" for end in ("", " low", " high")))]
    assert head[2:] == told and rows[0][3:6] == ["", "", ""]
    assert [float(value) for value in rows[1][2:]] == pytest.approx([29, 0, 0, 0, 29.5, 0.5, 0.5, 0.5])
    assert "0.5 [0.5, 0.5]" in table_of(run, capsys, places)
    for other in (reconstructed(tmp_path / "names", values, shift=9), reconstructed(tmp_path / "two clips", values[:2])):
        assert "change" not in table_of(run, capsys, [places[0], other])
    otherwise = reconstructed(tmp_path / "policy", values, real=2)
    assert "change" not in table_of(run, capsys, [places[0], otherwise, "differ=[real]"])


def judged(folder, hits, *, steps=24):
    """Verdicts on 20 clips of 10 prompts, the first `hits` of which are right; half of the prompts name no direction."""
    rows = []
    for number in range(20):
        right, asks = number < hits, number % 2
        verdicts = {"colour": True, "shape": right, "direction": True if asks else None, "count": True, "event": None, "steady": True}
        rows.append(
            {"prompt": f"prompt {number % 10}", "frames": 9, "height": 24, "width": 32, "name": f"{folder}-{number}"}
            | {"adherence": verdicts}
        )
    written(folder, protocol(steps=steps), rows=rows, adherence_all=hits / 20, adherence_direction=1.0)
    return str(folder)


def test_verdicts_on_the_same_prompts_are_compared_clip_by_clip(tmp_path, capsys):
    places = [judged(tmp_path / "few", 10), judged(tmp_path / "many", 16), judged(tmp_path / "steps", 16, steps=50)]
    words = [*places, "differ=[sampling]", "figures=[adherence_all,adherence_direction]", "format=csv"]
    head, _, *rows = csv.reader(table_of(run, capsys, words).splitlines())
    for row in rows:
        told = dict(zip(head, row, strict=True))
        low, value, high = (float(told[f"adherence_all change{end}"]) for end in (" low", "", " high"))
        assert value == pytest.approx(0.3) and 0 < low < 0.15 < 0.4 < high < 0.6  # 6 of 20 clips better, none worse
        none = [float(told[f"adherence_direction change{end}"]) for end in (" low", "", " high")]
        assert none[1] == 0 and none[0] == -none[2] < -0.1  # ten clips that were asked for one
    (tmp_path / "few/scores.json").write_text((tmp_path / "few/scores.json").read_text().replace('"colour"', '"color"'))
    assert run("compare", places) == 2 and "its rows are not those of clips" in capsys.readouterr().err


def table_of(command, capsys, words):
    assert command("compare", words) == 0
    return capsys.readouterr().out


def test_what_is_no_score_or_was_changed_is_told(two, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    foreign, changed, old = (tmp_path / name for name in ("foreign", "changed", "old"))
    write_json(foreign / "scores.json", {"stages": []})
    written(changed, protocol(), **figures(1.0))
    text = (changed / "scores.json").read_text()
    (changed / "scores.json").write_text(text.replace('"steps": 24', '"steps": 25'))
    write_json(
        old / "scores.json",
        {"kind": "videos", "figures": {}, "n": 2, "rows": [], "protocol": {"covariance": {"ddof": 1}}, "protocol_sha256": "x"},
    )
    for words, told in (
        ([str(two[0])], "sora compare A B"),
        ([str(two[0]), str(two[0])], "the same scores twice"),
        ([str(two[0]), str(tmp_path / "empty")], "holds no scores.json"),
        ([str(two[0]), str(foreign)], "holds no scores of sora evaluate"),
        ([str(two[0]), str(changed)], "was changed by hand"),
        ([str(two[0]), str(old)], "a protocol of another version"),
        ([*map(str, two), "figures=[fretchet]"], "did you mean 'frechet"),
        ([*map(str, two), "format=tex"], "choose from text, markdown, latex, csv"),
        ([], "needs FOLDER …: sora compare FOLDER …"),
    ):
        assert run("compare", words) == 2
        assert told in capsys.readouterr().err


def test_labels_are_what_differs():
    from pathlib import Path

    def of(*places):
        return labels([Path(place) for place in places])

    assert of("a/one/scores.json", "a/two/scores.json") == ["one", "two"]
    assert of("runs/x/evaluation/s", "runs/y/evaluation/s") == ["x", "y"]
    assert of("a/b", "c") == ["a/b", "c"]


def test_the_figures_of_a_score_are_not_lost_in_the_file(two):
    assert json.loads((two[1] / "scores.json").read_text())["figures"]["frechet"] == 8.25


# ---- the folders of a sweep


def swept(home, values, *, step=10, steps=10, **more):
    """Runs that a sweep named by its words, each with lines of its training: {words: loss}."""
    for words, loss in values.items():
        folder = home / words
        write_json(folder / "run.json", {"kind": "diffusion", "id": "x"})
        (folder / "config.yaml").write_text(json.dumps({"steps": steps, "data": {"split": "train"}, **more}))
        lines = [{"step": number, "loss": 9.0 if number < step else loss, "tokens_per_second": 100.0} for number in range(1, step + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home


SEEDS = {"density=uniform,seed=0": 1.0, "density=uniform,seed=1": 3.0, "density=mode,seed=0": 5.0, "density=mode,seed=1": 5.0}


def rows_of(capsys, words):
    assert run("compare", [*map(str, words), "format=csv"]) == 0
    return list(csv.reader(capsys.readouterr().out.splitlines()))


def test_the_folders_that_a_sweep_named_are_taken_as_folders_from_anywhere(tmp_path, monkeypatch, capsys):
    home = swept(tmp_path / "2026_11_29 ü", SEEDS)
    expected = [
        ["density", "runs", "step", "training loss", "training loss sd", "tokens/s", "tokens/s sd"],
        ["uniform", "2", "10", "2.0", "1.4142135623730951", "100.0", "0.0"],
        ["mode", "2", "10", "5.0", "0.0", "100.0", "0.0"],
    ]
    assert rows_of(capsys, [home / name for name in SEEDS]) == expected
    monkeypatch.chdir(home)
    assert rows_of(capsys, SEEDS) == expected and rows_of(capsys, [*list(SEEDS)[:2], "figures=[loss]", *list(SEEDS)[2:]])[1][3] == "2.0"
    listed = [f"scores=[{','.join(repr(str(home / name)) for name in SEEDS)}]"]
    assert rows_of(capsys, listed) == expected
    assert rows_of(capsys, [f"scores=[{','.join(SEEDS)}]"]) == expected
    assert [row[:2] for row in rows_of(capsys, [*SEEDS, "over=[]"])][1:] == [
        ["uniform", "0"],
        ["uniform", "1"],
        ["mode", "0"],
        ["mode", "1"],
    ]


def test_a_word_in_over_or_differ_that_nothing_has_is_refused(tmp_path, capsys):
    swept(tmp_path / "sw", SEEDS)
    home = [str(tmp_path / "sw" / name) for name in SEEDS]
    assert run("compare", [*home, "over=[seed,densty]"]) == 2
    error = capsys.readouterr().err
    assert "over=[densty]" in error and "did you mean 'density'?" in error and "swept words: density, seed" in error
    assert run("compare", [*home, "over=[steps]"]) == 2 and "swept words: density, seed" in capsys.readouterr().err
    assert run("compare", [*home, "differ=[seed]"]) == 2
    assert "differ=[seed] has no effect: it names fields of scores, and none of these runs has scores" in capsys.readouterr().err
    assert [row[0] for row in rows_of(capsys, [*home, "over=[density]"])] == ["seed", "0", "1"]
    scored = [str(written(tmp_path / name, protocol(), **figures(1.0))) for name in ("one", "two")]
    assert run("compare", [*scored, "over=[seed]"]) == 2 and "swept words: none" in capsys.readouterr().err
    assert run("compare", scored) == 0  # as it is by itself, where nothing was swept


def test_a_run_that_is_not_whole_or_not_there_has_no_part_in_a_mean_and_is_named(tmp_path, capsys):
    home = swept(swept(tmp_path / "sw", SEEDS), {"density=uniform,seed=1": 3.0}, step=4)
    write_json(home / ".sweep.json", {"runs": {name: name.split(",") for name in [*SEEDS, "density=late,seed=0"]}})
    assert run("compare", [str(home)]) == 0
    told = capsys.readouterr()
    rows = [line.split() for line in told.out.splitlines()]
    assert [row[:2] + row[3:4] for row in rows[:2]] == [["density", "runs", "training"], ["uniform", "1", "2"]]
    assert "1 of 2" in told.out and "1 ±" not in told.out and "0 of 1" in told.out
    assert "density=uniform,seed=1: it stands at step 4 of 10; sora train resume=" in told.err and "density=late,seed=0" in told.err
    written(home / "density=uniform,seed=0", protocol(), **figures(2.0))
    assert run("compare", [str(home)]) == 0
    told = capsys.readouterr()
    assert "12.5" not in told.out and "frechet" in told.out and told.err.count("it has no scores; sora evaluate checkpoint=") == 3


def test_a_run_whose_last_losses_are_not_finite_is_whole_but_has_no_part_in_a_mean_and_is_named(tmp_path, capsys):
    home = swept(swept(tmp_path / "sw", SEEDS), {"density=uniform,seed=1": None})
    assert run("compare", [str(home / name) for name in SEEDS]) == 0
    told = capsys.readouterr()
    assert "1 of 2" in told.out and "density=uniform,seed=1: no loss of its last steps is finite; " in told.err and "mode" not in told.err


def test_a_figure_has_one_column_whatever_its_short_name_and_this_folder_has_a_name(tmp_path, capsys, monkeypatch):
    both = figures(2.0) | {"frechet/motion3d-v1@9f": 5.0, "kvd/motion3d-v1@9f": 6.0, "motion_frechet": 5.0, "motion_kvd": 6.0}
    for name in ("one", "two"):
        written(tmp_path / name, protocol(), **both)
    monkeypatch.chdir(tmp_path / "one")
    head, *rows = rows_of(capsys, [".", "../two"])
    assert head.count("motion_frechet") == 1 and not [name for name in head if "motion3d" in name] and head.count(f"frechet/{KEY}") == 1
    assert [row[0] for row in rows] == ["one", "two"]


def test_what_was_measured_on_other_clips_is_told(tmp_path, capsys):
    home = swept(tmp_path, {"seed=0": 1.0}, evaluation={"clips": 8})
    swept(home, {"seed=1": 1.0}, evaluation={"clips": 16})
    assert run("compare", [str(home / "seed=0"), str(home / "seed=1")]) == 0
    assert "depends on evaluation, in which these runs differ" in capsys.readouterr().err


def test_scores_of_a_sweep_are_the_mean_over_seeds_with_their_deviation(tmp_path, capsys):
    for number, (words, _) in enumerate(SEEDS.items()):
        written(tmp_path / words / "evaluation/step-00000010", protocol(), kvd=float(number))
    head, *rows = rows_of(capsys, [tmp_path / name for name in SEEDS])
    assert head == ["density", "runs", "n", "kvd", "kvd sd"]
    assert [row[:4] for row in rows] == [["uniform", "2", "20", "0.5"], ["mode", "2", "20", "2.5"]]
    assert float(rows[0][4]) == pytest.approx(0.5**0.5)


def test_different_protocols_stand_side_by_side_and_counts_are_told_one_by_one(tmp_path, capsys):
    one, two, three = protocol(), protocol(), protocol(steps=9)
    shapes = {"5x8x8 at 8 fps": 2}
    for found, count in ((one, 4), (two, 3), (three, 3)):
        found.generated["shapes"] = {**shapes, "9x8x8 at 8 fps": count}
    places = [written(tmp_path / name, found, kvd=1.0) for name, found in (("one", one), ("two", two), ("also", two), ("three", three))]
    assert run("compare", list(map(str, places))) == 2
    head, *rows = [line for line in capsys.readouterr().err.splitlines() if line][:-1]
    assert head.split() == ["different", "one", "two", "(and", "1", "more)", "three"]
    assert [row.rsplit(maxsplit=3) for row in rows] == [
        ["generated.shapes: 9x8x8 at 8 fps", "4", "3", "3"],
        ["sampling.steps", "24", "24", "9"],
    ]
