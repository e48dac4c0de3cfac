"""Nothing is written through a link that a stranger's folder holds; the user's own links go on working."""

import pytest

from tests.attacks.harness import assert_bounded, assert_refused, in_turn
from tests.attacks.material import TRAIN

VERBS = {
    "train": ("resume={run}", "steps=4", "resume_allow=[steps]", "data.folders=[{data}]"),
    "sample": ("checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1"),
    "evaluate": ("checkpoint={run}", "data={data}", "n=2", "steps=1"),
    "report": ("{run}",),
}
FILES = ("metrics.jsonl", "events.jsonl", "goodput.jsonl", "quarantine.jsonl", "evaluation.jsonl", ".lock", "metrics.csv", "report.html")
FOLDERS = ("samples", "checkpoints", "vae", "evaluation", "snapshots", "profile")


@pytest.fixture
def outside(tmp_path):
    place = tmp_path / "outside"
    place.mkdir()
    (place / "mine").write_text("of the user")
    return place


def state(folder):
    return {path: (path.read_bytes() if path.is_file() else None) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("name", "verb"), in_turn([*FILES, *FOLDERS], [*VERBS], 2))
def test_a_link_in_a_run_is_not_written_through(sora, material, made, outside, verb, name):
    run = material.copy("live")
    target = outside / "mine" if name in FILES else outside
    if (run / name).is_dir():
        (run / name).rename(outside / "was")
        target = outside / "was"
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    before = state(outside)
    ended = sora(verb, *(word.format(run=run, data=made / "data") for word in VERBS[verb]))
    assert state(outside) == before, ended.told
    assert_refused(ended, name, "link out of")


@pytest.mark.parametrize(("verb", "name"), [("sample", "samples/step-00000002"), ("evaluate", "evaluation/step-00000002")])
def test_nor_is_one_deeper_within(sora, material, made, outside, verb, name):
    run = material.copy("live")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside)
    before = state(outside)
    ended = sora(verb, *(word.format(run=run, data=made / "data") for word in VERBS[verb]))
    assert state(outside) == before, ended.told
    if ended.code:
        assert_refused(ended, "link")


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("verb", ["sample"])
def test_a_checkpoint_of_links_is_not_read(sora, material, made, outside, verb, file):
    run = material.copy("live")
    for step in (run / "checkpoints").iterdir():
        (step / file).rename(outside / f"{step.name}-{file}")
        (step / file).symlink_to(outside / f"{step.name}-{file}")
    assert_refused(sora(verb, *(word.format(run=run, data=made / "data") for word in VERBS[verb])), file, "link out of")


@pytest.mark.parametrize("name", ["columns", "latents-12345678"])
def test_a_folder_of_a_dataset_that_is_a_link_is_not_written_into(sora, material, made, outside, name):
    data = material.copy("data")
    if name == "columns":
        (data / name).rename(outside / "was")
        (data / name).symlink_to(outside / "was")
        ended = sora("plan", *TRAIN, f"data.folders=[{data}]", f"vae={made / 'vae'}", "steps=2")
        assert_refused(ended, "columns", "link out of")
        return
    place = next(path for path in data.glob("latents-*") if path.is_dir())
    for path in [*data.glob("latent*.json"), *data.glob("latent-*")]:
        path.unlink()
    before = state(outside)
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.symlink_to(outside)
    ended = sora("encode", f"data={data}", f"vae={made / 'vae'}", "text=byte")
    assert state(outside) == before, ended.told
    assert_refused(ended, place.name, "link out of")


# ---- honest links


def test_a_run_that_is_reached_through_a_link_trains_and_samples(sora, material, made, tmp_path):
    run = material.copy("live")
    (tmp_path / "outputs").symlink_to(run.parent, target_is_directory=True)
    linked = tmp_path / "outputs/live"
    for verb in ("train", "sample", "report"):
        ended = sora(verb, *(word.format(run=linked, data=made / "data") for word in VERBS[verb]))
        assert_bounded(ended)
        assert ended.code == 0, ended.told


def test_a_run_that_is_itself_a_link_and_an_output_that_is_one(sora, material, made, tmp_path):
    run = material.copy("live")
    (tmp_path / "linked").symlink_to(run, target_is_directory=True)
    (tmp_path / "room").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "room", target_is_directory=True)
    words = (word.format(run=tmp_path / "linked", data=made / "data") for word in VERBS["sample"])
    ended = sora("sample", *words, f"output={tmp_path / 'out'}")
    assert ended.code == 0, ended.told
    assert list((tmp_path / "room").glob("*.mp4"))


def test_links_within_a_run_are_fine(sora, material, made):
    run = material.copy("live")
    (run / "best").symlink_to("checkpoints/step-00000002", target_is_directory=True)
    (run / "latest.html").symlink_to("report.html")
    ended = sora("report", str(run))
    assert ended.code == 0, ended.told


def test_shards_and_datasets_may_lie_on_another_disk(sora, material, made, tmp_path):
    data = material.copy("data")
    (tmp_path / "disk").mkdir()
    (data / "video-000000.tar").rename(tmp_path / "disk/a.tar")
    (data / "video-000000.tar").symlink_to(tmp_path / "disk/a.tar")
    (tmp_path / "named").symlink_to(data, target_is_directory=True)
    for words in (
        ("data", "check", str(tmp_path / "named"), f"output={tmp_path / 'c.json'}"),
        ("encode", f"data={tmp_path / 'named'}", f"vae={made / 'vae'}", "text=byte"),
    ):
        ended = sora(*words)
        assert ended.code == 0, ended.told


def test_a_caption_from_elsewhere_is_none_and_pairs_of_links_are_fine(sora, material, tmp_path):
    videos = material.copy("videos")
    (tmp_path / "secret.txt").write_text("of the user")
    (videos / "clip0.txt").unlink()
    (videos / "clip0.txt").symlink_to(tmp_path / "secret.txt")
    ended = sora("prepare", "source=folder", f"input={videos}", f"output={tmp_path / 'made'}")
    assert "of the user" not in ended.out + ended.err
    assert ended.code == 0 and "link out of" in (tmp_path / "made/report.json").read_text(), ended.told
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in material.folder.joinpath("videos").iterdir():
        (farm / path.name).symlink_to(path)
    ended = sora("prepare", "source=folder", f"input={farm}", f"output={tmp_path / 'farmed'}")
    assert ended.code == 0, ended.told
    assert '"captioned"' in (tmp_path / "farmed/dataset.json").read_text()
