"""A key that has no effect is refused; one that is taken has one. A file of statistics stands only for the clips that are asked for."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from sora.cli import guarded
from sora.config.compose import Composed, compose
from sora.evaluate import main, said_in, settings_of
from sora.evaluation.reads import SORTED, read, refuse_other_statistics, refuse_unread
from sora.evaluation.words import KNOWN
from sora.metrics.feature_sets import FORMAT, read_features, save_features
from tests.test_evaluate_files import folder
from tests.trained import diffusion_run, vae_artefact

pytestmark = pytest.mark.slow
# Another value of each key than the default's, that a command of videos can have.
OTHER = {
    "steps": 3, "shift": 2.0, "first": 0.5, "budget": 7, "training": 3, "loss.levels": 3, "ema": "last", "neighbours": 2, "ddof": 0,
    "permutations": 39,
    "bootstrap": 25, "kernel": "legacy", "crop": False, "quantise": False, "trajectories": 2, "real.n": 6, "real.stride": 2,
    "split": "train", "caption": "dense", "selection": "good", "sets": [],
    "extractor.seed": 5, "n": 9, "generated.start": "middle", "size": "12x8", "keep": 1,
    "sampler.x": 1, "guidance.scale": 7.0, "data": None,
}  # fmt: skip
SHOWN = ("keep",)  # which shows more or less, and moves no figure


@cache
def plain():
    return compose("evaluate", ["checkpoint=x"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("reads")
    return folder(home / "one", seed=0, count=12), folder(home / "two", seed=1, count=12, bright=40)


def given(**more):
    config = deepcopy(plain().config)
    OmegaConf.set_struct(config, False)
    for key, value in more.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return config


def figures(config):
    assert guarded("evaluate", lambda: main(Composed(config, plain().choices))) == 0
    found = json.loads((Path(config.output) / "scores.json").read_text())
    return {name: value for name, value in found["figures"].items() if not np.isnan(value)}


@pytest.mark.parametrize("words", [["frechet"], ["kvd", "vendi"], ["precision"], ["quality"]])
def test_what_counts_moves_figures_and_what_does_not_leaves_them(sets, tmp_path, words):
    one, two = sets
    base = {"checkpoint": str(one), "data": str(two), "metrics": words, "cache": str(tmp_path / "features"), "rates": "any", "keep": 0}
    base |= {"real.frames": 5, "generated.frames": 5, "bootstrap": 20, "neighbours": 3, "output": str(tmp_path / "out"), "page": False}
    base |= {"n": 2, "generated.frames": 3} if words == ["quality"] else {}
    expected, counts = figures(given(**base)), read(settings_of(given(**base)), words, kind="videos")
    for key, value in OTHER.items():
        changed = {**base, key: value}
        if key.partition(".")[0] not in counts:
            assert figures(given(**changed)) == expected, key
        elif key not in SHOWN and not (key == "data" or (words == ["quality"] and key in ("extractor.seed", "n"))):
            assert figures(given(**changed)) != expected, key


@pytest.mark.parametrize(
    ("kind", "words", "said", "told"),
    [
        ("videos", ["frechet"], "steps", r"steps=24 has no effect here: metrics=\[frechet\] of videos .* a run would; leave it out$"),
        ("videos", ["frechet"], "guidance.scale", "guidance.scale=4.0 has no effect here"),
        ("videos", ["frechet"], "training", r"but metrics=\[remembered\] of a run would"),
        (
            "videos",
            ["quality"],
            "uncaptioned",
            r"do not read it, but metrics=\[adherence\], metrics=\[physics\] or metrics=\[text\] would",
        ),
        ("videos", ["text"], "uncaptioned", None),
        ("videos", ["frechet"], "negative", "but a run would"),
        ("diffusion", ["quality"], "negative", None),
        ("diffusion", ["kvd"], "uncaptioned", None),
        ("diffusion", ["loss"], "uncaptioned", "but what is measured of clips that it makes"),
        ("videos", ["loss"], "data", r"metrics=\['loss'\]: for videos, choose from adherence, physics, quality"),
        ("vae", ["reconstruction", "remembered"], "n", r"for a VAE, choose from reconstruction, frechet"),
        ("videos", ["frechet"], "neighbours", r"but metrics=\[precision\] would"),
        ("videos", ["kvd"], "ddof", r"but metrics=\[frechet\], metrics=\[fvd\], metrics=\[motion\] or"),
        ("videos", ["quality"], "real.n", "but a distance, such as"),
        ("videos", ["quality"], "data", "but a distance, such as"),
        ("videos", ["frechet"], "kernel", "size= is null"),
        ("videos", ["frechet"], "caption", "only a dataset that sora made has splits"),
        ("videos", ["frechet"], "sampler", "sampler has no effect here"),
        ("diffusion", ["loss"], "n", r"metrics=\[loss\] of a run do not read it"),
        ("diffusion", ["loss"], "extractor", "extractor has no effect here"),
        ("diffusion", ["frechet"], "loss.levels", r"but metrics=\[loss\] would"),
        ("diffusion", ["frechet"], "rates", "videos from files would"),
        ("vae", ["reconstruction"], "real.n", None),
        ("vae", ["reconstruction"], "shift", "but a run would"),
        ("vae", ["reconstruction"], "extractor", "has no effect here"),
        ("diffusion", ["frechet", "remembered"], "training", None),
        ("videos", ["precision"], "neighbours", None),
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_who_would(tmp_path, kind, words, said, told):
    config = given(checkpoint=str(tmp_path), metrics=words, real__n=4, data="x", caption="dense", n=4, shift=2.0, negative="grey")
    if told is None:
        refuse_unread(settings_of(config), said_in(config, [said]), kind=kind)
        return
    with pytest.raises(ValueError, match=told) as error:
        refuse_unread(settings_of(config), said_in(config, [said]), kind=kind)
    assert "\n" not in str(error.value)


def test_every_key_is_read_by_something():
    """A key that a table forgets would be refused for all."""
    config = given(checkpoint="x", data="x", size="12x8")
    settings = settings_of(config)
    counted = {key for kind, known in KNOWN.items() for word in known for key in read(settings, [word], kind=kind)}
    assert counted | set(SORTED) == {*config, "preset"}


def test_guidance_that_guides_nothing_is_refused_before_the_run_is_read(tmp_path, capsys):
    run = diffusion_run(tmp_path / "run", vae=vae_artefact(tmp_path / "vae"), data=tmp_path)
    for words, told in (
        (["guidance=none", "guidance.scale=6"], "guidance=none guides nothing, and guidance.scale=6 does"),
        (["guidance.scale=1", "guidance.rescale=0.5"], "guidance.rescale=0.5 has no effect at guidance.scale=1"),
        (["guidance=none", "negative=grey"], "negative='grey' has no effect at guidance.scale=1"),
    ):
        asked = compose("evaluate", [f"checkpoint={run}", "data=nowhere", *words])
        assert guarded("evaluate", lambda asked=asked: main(asked)) == 2
        assert told in capsys.readouterr().err


def test_a_finished_vae_has_one_state_only(tmp_path):
    config = given(checkpoint=str(vae_artefact(tmp_path / "vae")), metrics=["reconstruction"], step=3)
    for key in ("step", "ema"):
        with pytest.raises(ValueError, match="is a finished VAE"):
            refuse_unread(settings_of(config), said_in(config, [key]), kind="vae")
    run = diffusion_run(tmp_path / "run", vae=tmp_path / "vae", data=tmp_path)
    config = given(checkpoint=str(run), metrics=["frechet"])
    said = said_in(config, ["step", "ema", "steps", "real", "sampler", "output"])
    refuse_unread(settings_of(config), said, kind="diffusion")


@pytest.fixture(scope="module")
def statistics(sets, tmp_path_factory):
    place = tmp_path_factory.mktemp("statistics")
    words = {"checkpoint": str(sets[0]), "data": str(sets[1]), "statistics": str(place / "st.safetensors"), "output": str(place / "out")}
    figures(given(**words, **{"real.frames": 5, "real.n": 6, "generated.frames": 5, "bootstrap": 0, "page": False}))
    return place / "st.safetensors"


def test_a_file_stands_for_the_real_side_that_is_asked_for_field_by_field(statistics, sets):
    """Without data= nobody else looks at `real`."""
    base = {"checkpoint": str(sets[0]), "statistics": str(statistics)}
    refuse_other_statistics(settings_of(given(**base)), [], None)  # as it is
    for key, value, told in (
        ("n", 4, r"real\.n=4 \(it has 6\)"),
        ("frames", None, r"real\.frames=null \(it has 5\)"),
        ("start", "middle", r"real\.start=middle \(it has first\)"),
        ("stride", 3, r"real\.stride=3 \(it has 1\)"),
        ("choose", "random", r"real\.choose=random \(it has spread\)"),
        ("short", "leave_out", r"real\.short=leave_out \(it has refuse\)"),
    ):
        asked = settings_of(given(**base, **{f"real.{key}": value}))
        for said in (f"real.{key}", "real"):
            with pytest.raises(ValueError, match=told):
                refuse_other_statistics(asked, [said], None)
        with pytest.raises(ValueError, match=told):
            refuse_other_statistics(asked, [], "a_preset")
    same = settings_of(given(**base, **{"real.n": 6, "real.frames": 5}))
    refuse_other_statistics(same, ["real.n", "real.frames"], "a_preset")
    with pytest.raises(ValueError, match=r"real\.n=null \(it has 6 of 12\)"):
        refuse_other_statistics(settings_of(given(**base)), ["real.n"], None)
    refuse_other_statistics(
        settings_of(given(**base, data="x", **{"real.n": 4})), ["real.n"], None
    )  # then the clips themselves are compared


def test_a_preset_names_every_field_in_which_a_file_is_not_of_it(statistics, sets, capsys):
    words = ["preset=stylegan_v_fvd2048_16f", "extractor=rand3d", "n=6", "generated.frames=5", "metrics=[frechet]"]
    config = compose("evaluate", [f"checkpoint={sets[0]}", f"statistics={statistics}", *words])
    assert guarded("evaluate", lambda: main(config)) == 2
    error = capsys.readouterr().err
    for told in ("real.n=2048 (it has 6)", "real.frames=16 (it has 5)", "real.start=random (it has first)", "real.short=leave_out"):
        assert told in error
    assert error.count("\n") == 1 and "real.stride" not in error


def test_statistics_of_others_are_called_theirs(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.save(tmp_path / "mu.npy", np.zeros(3))
    torch.save({"mu": torch.zeros(3)}, tmp_path / "stats.pt")
    for name in ("fid.npz", "mu.npy", "stats.pt"):
        with pytest.raises(ValueError, match=rf"{name} is no file of sora evaluate, but somebody else's.*let data=FOLDER write one"):
            read_features(tmp_path / name)
    save_file({"mu": torch.zeros(3)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match="holds no features of this version"):
        read_features(tmp_path / "theirs.safetensors")
    for about in ({"protocol": "{"}, {"protocol": "[]", "sha256": "0"}, {"protocol": "{}"}, {}):
        save_file({"features": torch.zeros(3, 2)}, tmp_path / "bent.safetensors", metadata={"format": FORMAT, **about})
        with pytest.raises(ValueError, match="is damaged"):
            read_features(tmp_path / "bent.safetensors")


def test_features_of_another_width_are_refused(statistics, sets, tmp_path, capsys):
    found = read_features(statistics)
    save_features(tmp_path / "wide.safetensors", torch.cat((found.features, found.features), dim=1), found.protocol)
    config = given(checkpoint=str(sets[0]), statistics=str(tmp_path / "wide.safetensors"), output=str(tmp_path / "x"))
    OmegaConf.update(config, "generated.frames", 5)
    assert guarded("evaluate", lambda: main(Composed(config, plain().choices))) == 2
    assert "holds features of 448 numbers, and rand3d-v1 has 224" in capsys.readouterr().err
