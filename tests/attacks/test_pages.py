"""Scores, samples and logs of strangers, which pages and tables are made of."""

import json
import shutil

import pytest

from tests.attacks.harness import BROKEN, assert_bounded, assert_refused, changed, in_turn, without

DOORS = {"report": ("{scores}",), "compare": ("{scores}", "{sound}")}


@pytest.fixture
def attack(sora, material):
    def attacked(verb, spoil, file="scores.json"):
        scores = material.copy("scores")
        spoil(scores / file)
        return sora(verb, *(word.format(scores=scores, sound=material.folder / "scores") for word in DOORS[verb]))

    return attacked


@pytest.mark.parametrize(("how", "verb"), in_turn([*BROKEN], [*DOORS]))
def test_scores_are_a_regular_file_of_their_form(attack, verb, how):
    ended = attack(verb, BROKEN[how])
    assert_bounded(ended)
    assert_refused(ended)


SAYS = {
    "figures": (1, [], {"a": "b"}, {"a": []}),
    "protocol": (1, [], {}),
    "protocol_sha256": (1, "x"),
    "n": (-1, "x", 1.5),
    "kind": ("x", 1),
    "rows": (1, [1], [{"frames": "x"}], [{"file": "/etc/passwd"}], [{"file": "../../x"}]),
    "clips": (1, [1], ["/etc/passwd"], ["../../../etc/passwd"]),
    "heldout": (1, {"by_level": 1}, {"clips": {"a": "x"}}),
    "neighbours": (1, {}, {"pairs": 1}),
    "subject": (1, {"step": "x"}, {"step": -1}),
    "cautions": (1, [1]),
    "real": (1, [{}], [{"file": "/etc/passwd", "width": 1, "height": 1}]),
    "preset": (1, [], {"name": 1}),
}


@pytest.mark.parametrize(("case", "verb"), in_turn([(key, value) for key, values in SAYS.items() for value in values], [*DOORS]))
def test_scores_hold_what_they_say(attack, verb, case):
    key, value = case
    verb = "compare" if key.startswith("protocol") else verb  # which alone asks by which protocol
    assert_refused(attack(verb, changed(key, value)), "scores.json")


@pytest.mark.parametrize(("key", "verb"), in_turn(["figures", "protocol", "protocol_sha256", "n", "kind"], [*DOORS]))
def test_scores_have_what_is_needed(attack, verb, key):
    assert_refused(attack(verb, without(key)), "scores.json")


@pytest.mark.parametrize("how", [name for name in BROKEN if name != "folder"])
def test_what_lies_beside_samples_is_left_out_or_refused(sora, material, tmp_path, how):
    folder = tmp_path / "samples"
    folder.mkdir()
    shutil.copy(material.folder / "videos/clip0.mp4", folder / "a.mp4")
    (folder / "a.json").touch()
    BROKEN[how](folder / "a.json")
    ended = sora("report", str(folder))
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told


@pytest.mark.parametrize("value", [1, [], {}, {"samples": 1}, {"samples": {"../../x": {}}}, {"samples": {"a": 1}}])
def test_the_mark_of_samples_names_files_of_its_folder(sora, material, tmp_path, value):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "x.mp4").write_text("of the user")
    (out / "samples.json").write_text(json.dumps(value))
    run = material.folder / "live"
    ended = sora("sample", f"checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", f"output={out}", "replace=true")
    assert (tmp_path / "x.mp4").read_text() == "of the user"
    assert_refused(ended, "samples.json")


@pytest.mark.parametrize("value", [1, {}, {"runs": 1}, {"runs": {"../x": ["a"]}}, {"runs": {"/etc": ["a"]}}, {"runs": {"a": 1}}])
def test_the_list_of_a_sweep_names_folders_below_it(sora, tmp_path, value):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/.sweep.json").write_text(json.dumps(value))
    assert_refused(sora("compare", str(tmp_path / "sweep")), ".sweep.json")
