"""What a command writes is nothing that it reads, nothing else that it writes, and nothing that another run of its sweep writes."""

import pytest

from sora.cli import USER_ERROR, run
from sora.config.command_line.sweep import split
from sora.config.command_line.verbs import verbs
from sora.config.compose import compose, config_dir
from sora.config.kinds import marks
from sora.system.files import refuse_blocked

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("evaluate", ["checkpoint=a", "output=./a"], "output=./a is what checkpoint= names"),
        ("evaluate", ["checkpoint=a", "data=[b, c]", "output={here}/c/"], "output={here}/c/ is what data= names"),
        ("evaluate", ["checkpoint=a", "output=c", "cache=c"], "is what .* names"),
        ("evaluate", ["checkpoint=a", "statistics=s", "vbench=x/../s"], "is what .* names"),
        ("data", ["index=raw", "output=raw"], "output=raw is what index= names"),
        ("compare", ["scores=[a, b.json]", "output=b.json"], "output=b.json is what scores= names"),
        ("train", ["data.folders=[a, b]", "vae=v", "output=b"], "output=b is what data.folders= names"),
        ("train", ["data.folders=[a]", "vae=v", "output=v"], "output=v is what vae= names"),
        ("sample", ["checkpoint=r", "output=r"], "output=r is what checkpoint= names"),
        ("export", ["checkpoint=r", "output=r"], "output=r is what checkpoint= names"),
        ("prepare", ["input=v", "output=v"], "output=v is what input= names"),
        ("plan", ["fit=r", "figures=r"], "figures=r is what fit= names"),
    ],
)
def test_an_output_is_not_what_another_key_names_however_it_is_spelt(verb, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("r")
    with pytest.raises(ValueError, match=told.format(here=tmp_path)):
        compose(verb, [word.format(here=tmp_path) for word in words])
    if verb == "sample":
        with pytest.raises(ValueError, match="is what checkpoint= names"):
            compose(verb, ["checkpoint=r", "output=link"])


def test_a_run_that_goes_on_is_its_own_output_and_inputs_may_be_one():
    assert compose("train", ["resume=r", "output=r"]).config.output == "r"
    assert compose("evaluate", ["checkpoint=a", "data=a", "output=b"]).config.data == "a"


def test_every_verb_that_has_an_output_says_so():
    found = {verb: marks([config_dir() / f"{verb}.yaml"], {}).get("output") for verb in verbs()}
    assert {verb for verb, mark in found.items() if mark != "out"} == {"encode", "plan"}, "encode writes into data=, plan into figures="


def test_runs_of_a_sweep_do_not_write_one_file():
    with pytest.raises(ValueError, match=r"^vbench=v is written by several runs of the sweep"):
        split("evaluate", ["checkpoint=a", "seed=1,2", "output=o", "vbench=v"], [])
    assert len(split("evaluate", ["checkpoint=a", "seed=1,2", "output=o", "statistics=s.npz"], []).runs) == 2


@pytest.mark.parametrize(
    ("verb", "words", "place"),
    [
        ("prepare", ["source=world", "count=4"], "/proc/x"),
        ("data", ["index=there"], "dead/x"),
        ("train", ["experiment=toy_vae", "vae=toy", "data.folders=[there]"], "/proc/x/deeper"),
        ("evaluate", ["checkpoint=there", "data=there"], "dead"),
        ("compare", ["there", "file"], "file/x"),
    ],
)
def test_where_nothing_can_be_made_is_told_before_anything_is_done(verb, words, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert run(verb, [*words, f"output={place}"]) == USER_ERROR
    told = capsys.readouterr().err
    assert told.startswith(f"sora {verb}: output={place} cannot be made: ") and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_whose_folders_are_not_there_yet_can_be_made_and_leaves_nothing(tmp_path):
    refuse_blocked({"output": str(tmp_path / "2026_11_29 ü" / "a" / "b"), "statistics": str(tmp_path)})
    assert not list(tmp_path.iterdir())
