"""docs/python.md runs as it stands, and a run that is opened from Python samples what `sora sample` does."""

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest
import torch

import sora
from sora.cli import run as command
from sora.config.own import naming
from sora.video.files import read
from tests.trained import stored_artefacts

PAGE = Path(__file__).parents[1] / "docs/python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the run, the VAE and the dataset that the page speaks of."""
    stored = stored_artefacts(tmp_path_factory.mktemp("stored"))
    home = tmp_path_factory.mktemp("home")
    for name, there in (("run", "outputs/dit"), ("vae_run", "outputs/vae"), ("data", "data/world")):
        shutil.copytree(stored / name, home / there)
    return home


def test_the_page_runs_as_it_stands(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    found: dict[str, object] = {}
    torch.manual_seed(0)
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec"), found)
    assert len(BLOCKS) == 7 and capsys.readouterr().out.splitlines()[0] == "stopped"  # before the first prediction
    clips, made, frames = found["clips"], found["made"], found["frames"]
    assert [tuple(clip.shape) for clip in clips] == [(9, 32, 32, 3)] * 4 and made.shape == (9, 32, 48, 3)
    assert not torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
    assert frames.shape == (1, 9, 32, 32, 3) and found["loss"].item() > 0
    by_hand = next(block for block in BLOCKS if "DiT(" in block)
    assert len([line for line in by_hand.splitlines() if line]) <= 20


def test_what_the_pages_import_is_there_and_is_no_file():
    """Files are private: pages import from rooms, and from the vocabulary."""
    root = PAGE.parents[1]
    pages = [root / "README.md", *root.glob("docs/*.md"), *(root / room / "README.md" for room in ("data", "experiments", "slurm"))]
    blocks = [block for page in pages for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)]
    nodes = [node for block in blocks for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
    ours = [(str(node.module), name.name) for node in nodes for name in node.names if str(node.module).startswith("sora")]
    assert len(ours) > 20
    for module, name in ours:
        assert module == "sora.tokens" or module.count(".") == 1, module
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_new_captions_are_written_as_the_page_of_the_data_says(home, monkeypatch, tmp_path):
    page = (PAGE.parents[1] / "data/README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shutil.copytree(home / "data/world", tmp_path / "data/set")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "data/README.md", "exec"), {})
    said = sora.open_dataset("data/set").index.captions(0)
    assert "A red ball rolls left over wet sand." in [caption.text for caption in said]


def test_the_command_and_python_make_the_same_clips(home, tmp_path):
    """Other packs, too: the clip of a prompt, a seed and a number is one clip."""
    words = ["steps=3", "guidance.scale=2", "size=24x32", "seconds=0.5", "seed=5"]
    given = [f"checkpoint={home / 'outputs/dit'}", "prompt=a red circle", "enlarge=1", *words, f"output={tmp_path / 'out'}"]
    assert command("sample", given) == 0
    expected = read(next((tmp_path / "out").glob("*.mp4"))).frames.astype(int)
    run = sora.open_run(home / "outputs/dit")
    requests = run.requests(["a red circle", "a square"], *words[2:])
    found, other = (clip.numpy().astype(int) for clip in run.generator(*words[:2]).generate(requests))
    error, unlike = (abs(clip - expected).mean() for clip in (found, other))  # the video is coded with a little loss
    assert found.shape == expected.shape and error < 10 and error < unlike / 3


def test_weights_are_chosen_as_on_the_command_line(home):
    own, last, early = (sora.open_run(home / "outputs/dit", **choice).dit.state_dict() for choice in ({}, {"ema": "last"}, {"step": 10}))
    same = sora.open_run(home / "outputs/dit/checkpoints/step-00000010").dit.state_dict()
    assert all(torch.equal(early[name], same[name]) for name in same)
    for other in (last, early):
        assert any(not torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda run, home: run.generator("seed=3"), "seed= has no effect here; these words have: sampler, guidance"),
        (lambda run, home: run.requests("a", "steps=3"), "steps= has no effect here; these words have: size"),
        (lambda run, home: run.generator("stesp=3"), "did you mean 'step'"),
        (lambda run, home: run.generator("steps=many"), "steps=many is of the wrong kind: it takes a whole number"),
        (lambda run, home: run.requests("a", "input=nothing.png"), "input=nothing.png does not exist"),
        (lambda run, home: sora.open_run(home / "data/world"), "is no run"),
        (lambda run, home: sora.open_run(home / "outputs/vae"), "is a run of kind vae"),
        (lambda run, home: sora.open_run(home / "outputs/dit", step=3), "has no checkpoint of step=3; it has 10, 20"),
        (lambda run, home: sora.open_run(home / "outputs/dit", device="gpu"), "device=gpu must be auto, cpu or cuda"),
        (lambda run, home: sora.open_vae(home / "outputs/dit/checkpoints"), "is no run"),
        (lambda run, home: sora.open_dataset(home / "outputs"), "so it is no finished dataset"),
        (lambda run, home: sora.open_dataset(home / "data/world", split="tset"), "has no clips of split 'tset'; it has"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_fits(home, asked, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        asked(sora.open_run(home / "outputs/dit"), home)


def test_a_dataset_gives_the_clips_that_were_written(home):
    dataset = sora.open_dataset(home / "data/world", "heldout")
    clips = list(dataset)
    assert [clip.key for clip in clips] == [dataset.index.key(number) for number in range(len(dataset))]
    assert all(len(clip.frames) == clip.row.frames and clip.captions for clip in clips)
    assert (dataset[-1].frames == clips[-1].frames).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_run_of_parts_of_ones_own_is_opened_with_them(home, tmp_path):
    part = "from sora.dit.dit import Block\n\n\ndef mine(number, parts):\n    return Block(number, parts)\n"
    (tmp_path / "my_block.py").write_text(part)
    own = str(tmp_path / "my_block.py")
    words = f"data.folders=[{home}/data/world] vae={home}/outputs/vae dit=toy dit.width=16 dit.heads=1 dit.rope.axes=[4,6,6] text=byte"
    words += " text.width=16 text.depth=1 plan.budget=512 plan.max_clips=8 workers=0 steps=1 dit.block._target_=my_block.mine"
    with naming([own]):
        assert command("train", [*words.split(), f"output={tmp_path / 'run'}"]) == 0
    with pytest.raises(ValueError, match="my_block"):
        sora.open_run(tmp_path / "run")
    assert sora.open_run(tmp_path / "run", own=[own]).step == 1
