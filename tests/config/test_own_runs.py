"""Runs with own modules: what they record, when they are refused, and every command and kind of part that docs/own_code.md tells of."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sora import cli
from tests.config.own_material import EVERY, GATED, ROOT, TELLTALE, told
from tests.trained import vae_artefact, world_dataset


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with a dataset that is encoded, and a VAE; of a name that is none in Python."""
    folder = tmp_path_factory.mktemp("own") / "2026_11_29 ü"
    (folder / "data").mkdir(parents=True)
    world_dataset(folder / "data/world", clips=12)
    vae_artefact(folder / "outputs/vae")
    assert cli.main(["encode", f"vae={folder / 'outputs/vae'}", f"data={folder / 'data/world'}", "text=byte"]) == 0
    return folder


FEW = ["experiment=toy", "steps=2", "log_every=1", "trainer.threads=1"]


@pytest.fixture
def run(material, tmp_path, capsys):
    """A run of the block in a file of its own, and that file."""
    block = tmp_path / "my notes/my block.py"
    block.parent.mkdir()
    block.write_bytes(Path(GATED).read_bytes())
    given = [f"data.folders=[{material / 'data/world'}]", f"vae={material / 'outputs/vae'}", f"output={tmp_path / 'run'}"]
    assert cli.main(["train", f"own=[{block}]", "dit.block._target_=my_block.gated", *FEW, *given]) == 0
    assert f"'own=[{block}]'" in capsys.readouterr().out.splitlines()[-1]  # what is printed next needs it
    return tmp_path / "run", block


AGAIN = {
    "sample": ["prompt=a circle", "steps=1", "seconds=0.5"],
    "export": ["output={out}"],
    "evaluate": ["data={data}", "n=2", "steps=1", "metrics=[frechet]", "bootstrap=0", "permutations=0"],
    "train": ["steps=3", "resume_allow=[steps]"],
}


@pytest.mark.slow
def test_a_run_is_refused_without_its_modules_and_goes_on_with_them(run, material, tmp_path, capsys):
    place, block = run
    kept = json.loads((place / "run.json").read_text())["own"]
    assert list(kept) == ["my_block"] and kept["my_block"]["file"] == str(block) and list(kept["my_block"]["files"]) == ["my block.py"]
    assert "own" not in yaml.safe_load((place / "config.yaml").read_text())
    for verb, more in AGAIN.items():
        words = [word.format(out=tmp_path / "exported", data=material / "data/world") for word in more]
        words.append(f"{'resume' if verb == 'train' else 'checkpoint'}={place}")
        said = told(capsys, verb, *words)
        assert f"uses the module my_block, code that is none of sora's; add 'own=[{block}]'" in said
        assert cli.main([verb, *words, *shlex.split(said.rpartition("add ")[2])]) == 0, verb
        assert "beware: my block.py" not in capsys.readouterr().out
    shutil.copytree(place, other := tmp_path / "other")
    for words in (["report", str(place)], ["compare", str(place), str(other)]):  # which only read files
        assert cli.main(words) == 0
    assert f"own=[{block}]" in (place / "report.html").read_text()
    capsys.readouterr()
    assert "own=[my block.py]" in told(capsys, "sample", "prompt=x", f"checkpoint={tmp_path / 'exported'}")


@pytest.mark.slow
def test_what_has_changed_is_said_and_recorded(run, capsys):
    place, block = run
    block.write_text(block.read_text() + "\n# another thought\n")
    words = ["train", f"resume={place}", "steps=3", "resume_allow=[steps]", f"own={block}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "beware: my block.py of the own module my_block has changed since" in out
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    assert "own" in events[-1]
    assert cli.main(words) == 0
    assert "beware: my block" not in capsys.readouterr().out  # the run goes on with what it is now


@pytest.mark.slow
def test_a_run_that_has_moved_with_its_notes_says_where_they_lie_now(run, capsys):
    place, block = run
    moved = place.parent.rename(place.parent.with_name("moved"))
    assert f"add 'own=[{moved / 'my notes/my block.py'}]'" in told(capsys, "sample", "prompt=x", f"checkpoint={moved / 'run'}")
    (moved / "my notes/my block.py").unlink()
    assert f"no file is called {block} now" in told(capsys, "sample", "prompt=x", f"checkpoint={moved / 'run'}")


@pytest.mark.slow
def test_a_repository_and_a_package_are_recorded(material, tmp_path, monkeypatch, capsys):
    package = tmp_path / "lab_in_git"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helping.py").write_text("STRENGTH = 1.0\n")
    text = Path(GATED).read_text().replace("import torch\n", "import torch\n\nfrom lab_in_git import helping\n", 1)
    (package / "blocks.py").write_text(text)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    for words in (["init", "-q"], ["add", "lab_in_git"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = [f"data.folders=[{material / 'data/world'}]", f"vae={material / 'outputs/vae'}"]
    seen = []
    for name in ("clean", "dirty"):
        words = [f"output={tmp_path / name}", "own=lab_in_git.blocks", "dit.block._target_=lab_in_git.blocks.gated"]
        assert cli.main(["train", *FEW, *given, *words]) == 0
        seen.append(json.loads((tmp_path / name / "run.json").read_text())["own"]["lab_in_git.blocks"])
        (package / "helping.py").write_text("STRENGTH = 2.0\n")
    assert list(seen[0]["files"]) == ["lab_in_git/__init__.py", "lab_in_git/blocks.py", "lab_in_git/helping.py"]
    assert [one["git"]["dirty"] for one in seen] == [False, True] and len(seen[0]["git"]["commit"]) == 40
    assert "add own=[lab_in_git.blocks]" in told(capsys, "sample", "prompt=x", f"checkpoint={tmp_path / 'clean'}")


@pytest.mark.slow
def test_a_hostile_run_imports_nothing(run, lab, capsys):
    """Whatever the configuration or run.json of a stranger's run says: targets, `own` in either, a file of the run's own."""
    place, _ = run
    (place / "evil.py").write_text(TELLTALE.format(mark=str(lab)))
    config, info = yaml.safe_load((place / "config.yaml").read_text()), json.loads((place / "run.json").read_text())
    kept = {"files": {"evil.py": "0" * 64}, "file": str(place / "evil.py")}
    for target in ("lab_of_mine.blocks.part", "evil.part", "os.system", "torch.load", "torch.serialization.load", "sora.evil.part"):
        config["dit"]["block"] = {"_target_": target}
        hostile = config | {"own": ["lab_of_mine.blocks", str(place / "evil.py")]}
        (place / "config.yaml").write_text(yaml.safe_dump(hostile))
        (place / "run.json").write_text(json.dumps(info | {"own": {"evil": kept, "lab_of_mine.blocks": {"files": {}}}}))
        for words in (["sample", "prompt=x", f"checkpoint={place}"], ["train", f"resume={place}"], ["export", f"checkpoint={place}"]):
            said = told(capsys, *words, *([f"output={place.parent / 'out'}"] if words[0] == "export" else []))
            assert "own=[" not in said, said  # no words to copy are offered for what no command of this user wrote
        assert cli.main(["report", str(place)]) in (0, 2)
        assert not lab.exists() and "evil" not in sys.modules and "lab_of_mine" not in sys.modules


@pytest.mark.slow
def test_every_kind_of_part_that_the_page_tells_of_works(material, tmp_path, capsys):
    kinds = {
        "dit": "Network",
        "dit.mlp": "bilinear",
        "dit.norm": "scaled",
        "dit.qk_norm": "halved",
        "dit.pattern": "own_frame_last",
        "density": "Squared",
        "path": "Line",
        "objective": "Doubled",
        "objective.prediction": "noise_minus_data",
        "objective.weighting": "steeper",
        "objective.shift": "no_shift",
        "optimizer": "sgd",
        "schedule": "falling",
        "ema.rate": "half",
        "recompute": "recompute_nothing",
        "text": "Bytes",
    }
    words = [f"{key}._target_=every_kind.{name}" for key, name in kinds.items()]
    words += ["dit.pattern.first=1", "objective.weighting.slope=0.5"]
    page = (ROOT / "docs/own_code.md").read_text()
    assert all(f"| `{key}` |" in page for key in (*kinds, "dit.block", "sampler", "guidance", "extractor"))
    given = [f"data.folders=[{material / 'data/world'}]", f"vae={material / 'outputs/vae'}", f"output={tmp_path / 'run'}"]
    assert cli.main(["train", f"own={EVERY}", *FEW, *words, *given]) == 0
    made = [
        f"own={EVERY}",
        "sampler._target_=every_kind.in_one_step",
        "guidance._target_=every_kind.unguided",
        f"checkpoint={tmp_path / 'run'}",
    ]
    assert cli.main(["sample", "prompt=x", "seconds=0.5", *made]) == 0
    scored = ["extractor._target_=every_kind.MeanColour", f"data={material / 'data/world'}", "n=2", "metrics=[frechet]"]
    assert cli.main(["evaluate", *made, *scored, "bootstrap=0", "permutations=0"]) == 0
    assert "frechet" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_page_runs(material, tmp_path, monkeypatch, capfd):
    """From the first to the last, in a folder that has the dataset and the VAE, as somebody would type them."""
    for name in ("data", "outputs"):
        (tmp_path / name).mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "data/world").symlink_to(material / "data/world")
    (tmp_path / "outputs/vae").symlink_to(material / "outputs/vae")
    page = (ROOT / "docs/own_code.md").read_text()
    lines = [line for block in page.split("```bash\n")[1:] for line in block.partition("```")[0].splitlines()]
    assert len(lines) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes of sweeps
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, (line, capfd.readouterr().err[-2000:])
