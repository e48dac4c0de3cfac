"""Targets are public names of rooms, each of one definition; former names are read as present ones."""

import pytest

from sora.config.compose import compose
from sora.config.targets import ROOMS, allowed, find, parameters, public_names, source
from sora.gate.former_names import FORMER_FILES, FORMER_KEYS, RENAMED, ROOM_OF, current_key, current_name, with_current_names


@pytest.mark.parametrize("room", ROOMS)
def test_a_public_name_of_a_room_has_one_definition(room):
    names = public_names(room)
    assert names and all(len(found) == 1 for found in names.values()), {name: found for name, found in names.items() if len(found) > 1}
    for name, (found,) in names.items():
        assert find(f"sora.{room}.{name}") == found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_modules_that_are_there(room):
    assert all(source(f"sora.{module}") is not None for module in ROOMS[room])


def test_every_name_that_was_changed_means_something_that_is_there():
    former = [f"sora.{file}.{name}" for file, names in RENAMED.items() for name in names]
    assert len(former) > 60 and all(find(current_name(name)) is not None for name in former)


def test_former_files_and_rooms_are_the_same():
    assert set(FORMER_FILES) == set(ROOMS) - {"captioner", "captions", "curation", "web"}  # rooms that never had public files
    assert len(ROOM_OF) == sum(len(files.split()) for files in FORMER_FILES.values())  # no file is of two rooms


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("sora.dit.patterns.full", "sora.dit.full_attention"),
        ("sora.dit.attention.attend", "sora.dit.fastest_attention"),  # a name that a package gave on
        ("sora.dit.attention.fastest.attend", "sora.dit.fastest_attention"),
        ("sora.data.planning.TokenPlan", "sora.data.TokenPlan"),
        ("sora.data.decoding.pyav.PyAVReader", "sora.video.PyAVReader"),
        ("sora.diffusion.weighting.constant", "sora.diffusion.constant_weight"),
        ("sora.diffusion.shift.constant", "sora.diffusion.constant_shift"),
        ("sora.dit.full_attention", "sora.dit.full_attention"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
        ("sora.storage.write_json", "sora.storage.write_json"),  # was no target, and becomes none
    ],
)
def test_a_former_name_is_read_as_the_present_one(former, now):
    assert current_name(former) == now == current_name(now)


def test_only_targets_are_renamed():
    said = {"_target_": "sora.dit.dit.DiT", "prompt": "sora.dit.dit.DiT", "parts": [{"_target_": "sora.dit.rope.waves", "count": 3}]}
    now = {"_target_": "sora.dit.DiT", "prompt": "sora.dit.dit.DiT", "parts": [{"_target_": "sora.dit.wave_positions", "count": 3}]}
    assert with_current_names(said) == now and said["_target_"] == "sora.dit.dit.DiT"


def test_a_former_name_that_is_typed_is_answered_with_the_present_one():
    with pytest.raises(ValueError, match=r"sora\.dit\.patterns\.full is refused: it is called sora\.dit\.full_attention now"):
        allowed("sora.dit.patterns.full")


@pytest.mark.parametrize(
    "target", ["sora.data.read_clip.x", "sora.dit.published.checkpoints.load", "sora.training.serve.x", "sora.storage.write_json"]
)
def test_what_is_no_public_name_of_a_room_is_refused(target):
    with pytest.raises(ValueError, match="is refused: it is outside the rooms"):
        allowed(target)


def test_former_keys_are_read_as_present_ones_where_they_stood_alone():
    guard, objective = (
        {"_target_": "sora.training.soundness.Guard", "returns": 2},
        {"_target_": "sora.diffusion.Objective", "per_frame": 0.5},
    )
    said = {
        "clip": 1.0,
        "guard": guard,
        "objective": objective,
        "text": {"clip": 3},
        "vae": {"_target_": "sora.vae.VideoVAE", "returns": 1},
    }
    now = with_current_names(said)
    assert now["guard"] == {"_target_": "sora.training.Guard", "max_rollbacks": 2}
    assert now["objective"] == {"_target_": "sora.diffusion.Objective", "frame_level_share": 0.5}
    assert (now["max_grad_norm"], now["text"], now["vae"]) == (1.0, said["text"], said["vae"])
    assert list(now) == ["max_grad_norm", "guard", "objective", "text", "vae"] and with_current_names(now) == now


def test_every_key_that_was_changed_means_one_that_is_there():
    for target, keys in FORMER_KEYS.items():
        definition = find(target) if target else None
        known = parameters(definition) if definition else compose("train", ["task=diffusion"]).config
        assert known is not None and all(key not in known and now in known for key, now in keys.items())


@pytest.mark.parametrize("word", ["clip=2", "guard.returns=1", "objective.per_frame=0.5", "++clip=2"])
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_former_key_that_is_typed_is_answered_with_the_present_one(verb, word):
    key = word.lstrip("+").partition("=")[0]
    with pytest.raises(ValueError, match=f"there is no key '{key}' \\(it is called '{current_key(key)}' now\\)"):
        compose(verb, [word])


def test_so_is_one_of_an_own_file(tmp_path):
    for folder, name, text in (
        ("experiment", "mine", "# @package _global_\nclip: 2.0\n"),
        ("guard", "own", "_target_: sora.training.Guard\npatience: 5\nmost: 9\nspike: null\nhistory: 8\nreturns: 1\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"it is called '(max_grad_norm|max_rollbacks)' now"):
            compose("train", [f"{folder}={name}"], [tmp_path])
