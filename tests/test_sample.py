"""`sora sample` makes what it was asked for, the same again, and says what it cannot make."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sora.assembly.load import load_diffusion, load_vae
from sora.cli import run
from sora.generation.generator import Generator
from sora.generation.samples import SUFFIXES, enlarged, slug, write_png
from sora.system.draws import sample_id
from sora.video.files import read, write
from tests.trained import diffusion_run, vae_artefact, world_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("sample")
    return diffusion_run(home / "dit", vae=vae_artefact(home / "vae"), data=world_dataset(home / "world", clips=4))


def test_the_last_line_names_the_page_of_the_samples(trained, tmp_path, monkeypatch, capsys):
    """As one types it, from another folder, whatever the folders are called."""
    monkeypatch.chdir(tmp_path)
    for output, page in (["output=a ü/=2"], tmp_path / "a ü" / "=2" / "report.html"), ([], trained / "report.html"):
        assert run("sample", [f"checkpoint={trained}", "steps=1", "prompt=x", "seconds=0", "size=16x16", *output]) == 0
        told = capsys.readouterr().out.splitlines()[-1]
        words = shlex.split(told.removeprefix("next: sora "))
        assert told.startswith("next: sora report ") and run(words[0], words[1:]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(page.resolve())
        page.unlink()
    shutil.rmtree(trained / "samples")


def sample(trained, output, *words):
    code = run("sample", [f"checkpoint={trained}", "steps=2", f"output={output}", *words])
    return code, sorted(Path(output).glob("*.mp4"))


def test_samples_come_with_their_size_frames_and_story(trained, tmp_path):
    code, (path, second) = sample(
        trained, tmp_path / "out", 'prompt=["a red circle, moving left","blue"]', "size=9:16", "seconds=2", "seed=3"
    )
    assert code == 0
    clip, story = read(path), json.loads(path.with_suffix(".json").read_text())
    # about 24 x 24 to 24 x 32 pixels at 9:16, multiples of 8; 2 s at 8 frames a second
    assert (story["height"], story["width"]) in ((32, 16), (40, 24)) and clip.fps == 8
    assert (story["prompt"], story["seed"], story["frames"]) == ("a red circle, moving left", 3, 17)
    assert story["enlarged"] == 128 // story["width"]  # small clips are shown larger, and their story says by how much
    assert clip.frames.shape == (17, story["height"] * story["enlarged"], story["width"] * story["enlarged"], 3)
    assert story["checkpoint"]["step"] == 10 and set(story["checkpoint"]["hashes"]) == {"checkpoint", "vae", "text", "config"}
    assert story["sampler"]["_target_"].endswith("adams_bashforth") and story["guidance"]["scale"] == 4.0 and story["code"]["sora"]
    assert path.with_suffix(".png").is_file() and (tmp_path / "out" / "sheet.png").is_file() and second.name == "0001-blue.mp4"


def test_a_sample_is_the_same_alone_and_after_others(trained, tmp_path):
    _, (_, together) = sample(trained, tmp_path / "a", "prompt=[a circle,a square]", "size=16x16", "seconds=1")
    _, (alone,) = sample(trained, tmp_path / "b", "prompt=a square", "size=16x16", "seconds=1")
    one, two = read(together).frames.astype(int), read(alone).frames.astype(int)
    assert abs(one - two).max() <= 2  # float rounding may move a pixel by one level before compression
    _, (other,) = sample(trained, tmp_path / "c", "prompt=a square", "size=16x16", "seconds=1", "seed=1")
    assert abs(read(other).frames.astype(int) - two).max() > 10


def test_enlarging_repeats_pixels_and_spoils_no_colour(trained, tmp_path):
    """One-pixel columns of red and blue would run together at half colour resolution; enlarged, each keeps its own."""
    frames = np.zeros((2, 12, 10, 3), np.uint8)
    frames[:, :, ::2, 0] = frames[:, :, 1::2, 2] = 255
    for factor in (1, 4):
        large = enlarged(frames, factor)
        write(tmp_path / f"{factor}.mp4", large, 8.0, lossless=False)
        back = read(tmp_path / f"{factor}.mp4").frames[:, factor // 2 :: factor, factor // 2 :: factor].astype(int)
        assert (abs(back - frames).max() < 60) == (factor == 4)
    assert enlarged(np.zeros((1, 129, 200, 3))).shape == (1, 129, 200, 3) and enlarged(frames).shape == (2, 144, 120, 3)
    assert sample(trained, tmp_path / "out", "prompt=x", "enlarge=0")[0] == 2


def test_a_negative_prompt_changes_the_sample_and_stands_in_its_story(trained, tmp_path, capsys):
    rows = [{"prompt": "a circle"}, {"prompt": "a circle", "negative": "grey"}, {"prompt": "a circle", "negative": "blurred"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row | {"size": "16x16", "seconds": 0}) + "\n" for row in rows))
    code, paths = sample(trained, tmp_path / "out", f"prompts={tmp_path / 'p.jsonl'}", "negative=blurred")
    stories = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert code == 0 and [story["negative"] for story in stories] == ["blurred", "grey", "blurred"]
    numbers = [story["sample"] for story in stories]
    assert numbers[0] == numbers[1] != numbers[2]  # the same noise: what is led away from differs; the same twice is two
    one, two, three = (read(path).frames.astype(int) for path in paths)
    assert abs(one - two).max() > 2 and abs(one - three).max() > 2
    for words, told in (
        (["negative=grey", "guidance=none"], "negative='grey' has no effect at guidance.scale=1"),
        ([f"prompts={tmp_path / 'p.jsonl'}", "guidance.scale=1"], "negative='grey' has no effect at guidance.scale=1"),
    ):
        assert sample(trained, tmp_path / "none", "prompt=x", *words)[0] == 2
        assert told in capsys.readouterr().err


def test_words_that_the_encoder_does_not_read_are_told_and_stand_in_the_story(trained, tmp_path, capsys):
    long = f"{'a red circle ' * 19}and 22"  # 256 bytes are read, one of them marks the start
    code, (path, other) = sample(trained, tmp_path / "out", f"prompt=[{long}blue dogs, short]", "size=16x16", "seconds=0")
    told = capsys.readouterr().out
    assert code == 0 and "1 of 2 prompts is longer than text.max_tokens=256 and cut there" in told and "is lost: 'ue dogs'" in told
    assert json.loads(path.with_suffix(".json").read_text())["cut"] == {"prompt": "ue dogs"}
    assert json.loads(other.with_suffix(".json").read_text())["cut"] == {}


def test_mistakes_end_with_code_two_and_name_the_key(trained, tmp_path, capsys):
    for words, told in (
        (["prompt=x", "step=7"], "no checkpoint of step=7; it has 5, 10"),
        (["prompt=x", "size=wide"], "size='wide'"),
        (["prompt=x", "device=tpu"], "device=tpu"),
        (["prompt=x", "input=nowhere.png"], "input=nowhere.png does not exist"),
        ([], "nothing to make"),
        (["prompt=x", "fps=0"], "fps=0 is out of range"),
        (["prompt=x", "area=-5"], "area=-5 is out of range"),
        (["prompt=x", "samples=1.5"], "samples=1.5"),
        (["prompt=x", "samples=0"], "samples=0 is out of range"),
        (["prompt=x", "seconds=-1"], "seconds=-1 is out of range"),
        (["prompt=x", "seconds=.inf"], "seconds"),
        (["prompt=x", "input_frames=5"], "input_frames=5 has no effect without input="),
        (["prompt=x", "guidance=none", "guidance.scale=6"], "guidance=none guides nothing"),
    ):
        assert sample(trained, tmp_path / "out", *words)[0] == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Stopped(BaseException):
    """As a kill, after which nothing is tidied up."""


FOUR = ('prompt=[a red ball,"the blue/green ball","été",a red ball]', "size=16x16", "seconds=1", "budget=20")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_at(monkeypatch, pack: int) -> list[int]:
    """Sampling ends when it begins with this pack, counted from 1; the numbers of clips of each pack that was begun."""
    whole, begun = Generator.generate, []

    def generate(self, requests, **more):
        begun.append(len(requests))
        if len(begun) == pack:
            raise Stopped
        return whole(self, requests, **more)

    monkeypatch.setattr(Generator, "generate", generate)
    return begun


def test_a_batch_that_is_stopped_goes_on_by_the_same_command_with_the_same_bytes(trained, tmp_path, monkeypatch, capsys):
    assert sample(trained, tmp_path / "whole", *FOUR)[0] == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) == 4 * 3 + 2 and len({whole[name] for name in whole if name.endswith(".mp4")}) == 4
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        begun = stop_at(patched, 3)
        sample(trained, tmp_path / "cut", *FOUR)
    assert begun == [1, 1, 1]
    cut = contents(tmp_path / "cut")
    assert len(cut) == 2 * 3 + 1 and all(whole[name] == content for name, content in cut.items())
    (tmp_path / "cut" / "0001-the-blue-green-ball.json").unlink()  # as if the kill had come between its files
    (tmp_path / "moved").mkdir()
    (tmp_path / "cut").rename(tmp_path / "moved/cut")
    with monkeypatch.context() as patched:
        begun = stop_at(patched, 99)
        assert sample(trained, tmp_path / "moved/cut", *FOUR, "replace=true")[0] == 0
    assert begun == [1, 1, 1] and ", 1 of which are there; stopped" in capsys.readouterr().out
    assert contents(tmp_path / "moved/cut") == whole


def test_one_prompt_three_times_is_three_samples_and_no_other_sample_changes(trained, tmp_path):
    _, paths = sample(trained, tmp_path / "a", "prompt=[x,x,y,x]", "size=16x16", "seconds=0", "steps=1")
    stories = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert [story["sample"] for story in stories] == [sample_id(*each) for each in (("x", 0), ("x", 1), ("y", 0), ("x", 2))]
    _, paths = sample(trained, tmp_path / "b", "prompt=[x,x]", "samples=2", "size=16x16", "seconds=0", "steps=1")
    assert [json.loads(path.with_suffix(".json").read_text())["sample"] for path in paths] == [sample_id("x", n) for n in range(4)]


def test_samples_of_another_command_are_refused_by_name_and_go_only_when_asked(trained, tmp_path, capsys):
    quick, out = ("size=16x16", "seconds=0", "steps=1"), tmp_path / "out"
    assert sample(trained, out, "prompt=[a,b,c]", *quick)[0] == 0
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    for words, told in (
        (("prompt=[a,b,c]", *quick, "guidance.scale=7"), "guidance.scale: 4.0 there, 7"),
        (("prompt=[a,b,c]", *quick, "budget=64"), "budget: 4096 there, 64 now"),
        (("prompt=[a,b]", *quick), "other prompts, sizes or seeds"),
        (("prompt=[a,b,c]", *quick, "step=5"), "checkpoint.step: 10 there, 5 now"),
    ):
        assert sample(trained, out, *words)[0] == 2
        said = capsys.readouterr().err
        assert told in said and "0000-a.mp4 and 9 more files" in said and "replace=true" in said
    assert contents(out) == before
    assert sample(trained, out, "prompt=[a,d]", *quick, "replace=true")[0] == 0
    left = {"0000-a", "0001-d"}
    assert contents(out).keys() == {"notes.txt", "sheet.png", "samples.json"} | {f"{name}{end}" for name in left for end in SUFFIXES}
    (out / "samples.json").unlink()  # as versions before left it
    assert sample(trained, out, "prompt=[a,d]", *quick)[0] == 2
    assert "of an earlier version" in capsys.readouterr().err
    (out / "holiday.mov").write_bytes(b"mine")
    assert sample(trained, out, "prompt=[a,d]", *quick, "replace=true")[0] == 2
    assert "holds holiday.mov, no samples of this command" in capsys.readouterr().err and (out / "0000-a.mp4").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").touch()
    assert sample(trained, tmp_path / "run", "prompt=a", *quick)[0] == 2
    assert "holds run.json, no samples of this command" in capsys.readouterr().err and not (tmp_path / "run/samples.json").exists()


def test_without_an_output_no_command_writes_among_the_samples_of_another(trained, capsys):
    words = [f"checkpoint={trained}", "size=16x16", "seconds=0", "steps=1"]
    for prompt in ("a", "b", "a"):
        assert run("sample", [*words, f"prompt={prompt}"]) == 0
    home = trained / "samples"
    assert {path.relative_to(home).as_posix() for path in home.rglob("*.mp4")} == {"step-00000010/0000-a.mp4", "step-00000010-2/0000-b.mp4"}
    assert ", 1 of which are there\n" in capsys.readouterr().out


def test_what_cannot_be_written_is_told_before_a_step_is_made(trained, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 1)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output, words, told in (
        ("file", (), "output=TMP/file is a file; name a folder"),
        ("file/below", (), "cannot be made: TMP/file is no folder"),
        ("link", (), "is a link to nowhere"),
        ("ü" * 130, (), "longer than the 255 bytes"),
        ("out", ("enlarge=0",), "enlarge=0 is out of range: give a number of at least 1"),
        ("out", ("enlarge=2000",), "videos of 32000x32000 are too large"),
        ("out", ("fps=5000",), "samples of 16x16 at fps=5000 cannot be written as video: 5000"),
        ("out", ("fps=1e-4",), "at fps=0.0001 cannot be written as video"),
    ):
        words = [f"checkpoint={trained}", f"output={tmp_path / output}", "prompt=x", "size=16x16", "seconds=0", *words]
        assert run("sample", words) == 2, output
        assert told.replace("TMP", str(tmp_path)) in capsys.readouterr().err, told
    assert not (tmp_path / "out").exists()
    with pytest.raises(Stopped):
        sample(trained, tmp_path / "out", "prompt=x", "size=16x16", "seconds=0")
    assert not list((tmp_path / "out").glob("*"))  # nothing was made, so nothing is in the way


def test_a_clip_can_begin_with_a_given_frame(trained, tmp_path):
    shown = np.zeros((40, 40, 3), dtype=np.uint8)
    shown[:20, :, 0], shown[20:, :, 2] = 250, 250  # red over blue
    write_png(tmp_path / "given.png", shown)
    words = ("prompt=a circle", "size=24x24", "seconds=1", f"input={tmp_path / 'given.png'}")
    code, (path,) = sample(trained, tmp_path / "out", *words)
    assert code == 0 and json.loads(path.with_suffix(".json").read_text())["given_frames"] == 1
    first = read(path).frames[0].astype(int)
    assert abs(first[4] - (250, 0, 0)).max() < 25 and abs(first[-4] - (0, 0, 250)).max() < 25
    (tmp_path / "torn.png").write_bytes((tmp_path / "given.png").read_bytes()[:60])
    assert sample(trained, tmp_path / "none", *words[:3], f"input={tmp_path / 'torn.png'}")[0] == 2


def test_averaged_weights_are_loaded_unless_they_are_not_wanted(trained):
    averaged, last = load_diffusion(trained), load_diffusion(trained, 5, ema=False)
    assert (averaged.step, last.step) == (10, 5)
    for name, value in last.dit.state_dict().items():
        assert torch.allclose(averaged.dit.state_dict()[name], 1.5 * value), name
    assert not averaged.dit.training


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_a_live_run_lets_go_while_it_is_read_stays_or_makes_way_for_the_next(
    trained, tmp_path, monkeypatch, capsys, links
):
    from sora.runs import checkpoint, held

    live, read_whole = shutil.copytree(trained, tmp_path / "live") / "checkpoints", checkpoint.load
    state = read_whole(live / "step-00000010")
    tensors = {kind: dict(found) for kind, found in state.tensors.items()}
    later = checkpoint.save(tmp_path / "later", dataclasses.replace(state, step=12, tensors=tensors), keep=1)

    def load(path, **more):
        if (live / "step-00000010").exists():
            checkpoint._remove(live / "step-00000010")
            later.rename(live / later.name)
        return read_whole(path, **more)

    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted", str(source))

    monkeypatch.setattr(checkpoint, "load", load)
    if not links:
        monkeypatch.setattr(held.os, "link", no_links)
    found = load_diffusion(live.parent)
    assert found.step == (10 if links else 12)
    assert all(torch.equal(value, tensors["ema"][f"dit.{name}"]) for name, value in found.dit.state_dict().items())
    assert "damaged" not in capsys.readouterr().out and not list(live.parent.glob(".*"))
    with pytest.raises(ValueError, match="has no checkpoint of step=10; it has 5, 12"):
        load_diffusion(live.parent, 10)
    (live / "step-00000012" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{live}/step-00000012/model.safetensors is damaged"):  # by its own name
        load_diffusion(live.parent, 12)


def test_rotary_positions_stretch_at_sampling_and_only_when_asked(trained, tmp_path, capsys):
    plain, once, twice = (
        load_diffusion(trained, stretch=stretch and {"_target_": "sora.dit.interpolated_rope", "factors": stretch})
        .dit.get_submodule("rope")
        .rates
        for stretch in (None, [1, 1, 1], [2, 1, 4])
    )
    axes = torch.tensor([2, 1, 4]).repeat_interleave(torch.tensor([2, 3, 3]))
    assert torch.equal(plain, once) and torch.allclose(twice * axes, plain)
    words = ("prompt=a square", "size=16x16", "seconds=1", "stretch=ntk", "stretch.factors=[2,1,1]")
    code, (path,) = sample(trained, tmp_path / "out", *words)
    assert code == 0 and json.loads(path.with_suffix(".json").read_text())["stretch"]["factors"] == [2, 1, 1]
    assert sample(trained, tmp_path / "none", *words[:-1], "stretch.factors=[2,1]")[0] == 2
    assert "three numbers above 0" in capsys.readouterr().err


def test_what_was_not_trained_together_is_refused(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("max_tokens: 256", "max_tokens: 255"))
    with pytest.raises(ValueError, match="was trained with another text"):
        load_diffusion(copy)
    (copy / "config.yaml").write_text(config.replace("mlp_ratio: ", "mlp_ratio: 1"))
    with pytest.raises(ValueError, match=r"does not fit: dit of the run's config.yaml has over [\d,]+ numbers, and 51,536 are there"):
        load_diffusion(copy)
    (copy / "config.yaml").write_text(config)
    weights = copy / "checkpoints" / "step-00000010" / "ema.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-3] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"ema\.safetensors is damaged"):
        load_diffusion(copy, 10)
    with pytest.raises(ValueError, match="of kind diffusion, not of a VAE|is no VAE|artefact"):
        shutil.rmtree(copy / "vae")
        load_vae(copy)


def test_slugs_are_file_names():
    assert slug("A red/blue Ball, ../up?") == "a-red-blue-ball-up"
    assert slug("赤い球") == "sample" and len(slug("x " * 200)) <= 48
