"""Targets are public names of rooms, each of one definition; former names are read as present ones."""

import pytest

from sora.config.targets import ROOMS, allowed, find, public_names, source
from sora.gate.former_names import FORMER_FILES, RENAMED, ROOM_OF, current_name, with_current_names


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
    assert set(FORMER_FILES) == set(ROOMS)
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
