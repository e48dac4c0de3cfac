"""When the hub is asked: never for a stored word, never without a revision; and no code of a model's folder runs, nor asks to."""

import builtins
import json
import re
import sys

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from sora.config.compose import compose, config_dir, groups
from sora.config.experiments import files_of
from sora.gate import trust
from sora.system import hub


@pytest.fixture
def asked(monkeypatch):
    """What the hub's package is asked for; nothing is in the local cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls = []

    def snapshot_download(source, *, revision, allow_patterns, local_files_only):
        calls.append((source, revision, "cache" if local_files_only else "hub"))
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return "/snapshot"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.delenv(trust.ALLOW, raising=False)
    return calls


def snapshot(revision):
    return hub.snapshot("owner/name", revision, ["*.json"], key="text.source", instead="choose text=byte")


def test_the_hub_is_asked_only_for_what_the_command_line_names_at_a_revision(asked):
    with pytest.raises(ValueError, match=r"did not name it: .*hf download owner/name --revision abc.*--allow hf://owner/name"):
        snapshot("abc")
    with pytest.raises(ValueError, match=r"text\.revision=COMMIT.*text\.revision=main"):
        snapshot(None)
    with trust.allowing(["hf://owner/name"]):
        with pytest.raises(ValueError, match=r"text\.revision=COMMIT"):
            snapshot(None)
        assert asked == [("owner/name", "abc", "cache"), ("owner/name", None, "cache"), ("owner/name", None, "cache")]
        assert str(snapshot("abc")) == "/snapshot" and asked[-1] == ("owner/name", "abc", "hub")
    with trust.allowing(["hf://owner/other"]), pytest.raises(ValueError, match="did not name it"):
        snapshot("abc")


OPTIONS = [(group, name) for group in ("text", "extractor") for name in sorted(groups([config_dir()])[group])]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_source_of_the_hub_is_refused_without_a_revision_by_the_key_that_gives_it(asked, group, name):
    """A commit stands in a file only where it is known to be one; nothing is downloaded by default, and the words of the refusal work."""

    def tried(*words):
        tree = OmegaConf.to_container(compose("encode" if group == "text" else "evaluate", [f"{group}={name}", *words]).config)
        with hub.named(tree) as models, trust.allowing(models):
            for node in (node for node in nodes(tree[group]) if f"hf://{node.get('source')}" in models):
                hub.snapshot(node["source"], node["revision"], ["*.json"], key=f"{group}.source", instead="choose another")
        return models

    said = "".join(path.read_text() for path in files_of(group, name, groups([config_dir()])))
    revisions = [line.split("#")[0].split(":")[1].strip() for line in said.splitlines() if line.strip().startswith("revision:")]
    assert all(word == "null" or len(word) == 40 for word in revisions)
    sources = [source for source in re.findall(r"source: *(\S+)", said) if hub.ID.fullmatch(source)]
    if not sources:
        assert tried() == () and asked == [] and not revisions.count("main")
        return
    assert len(sources) == len(revisions)
    with pytest.raises(ValueError, match="without a revision") as refusal:
        tried()
    assert {where for _, _, where in asked} == {"cache"}
    words = re.search(r"\((\S+=COMMIT(?: \S+=COMMIT)*);", str(refusal.value))[1].replace("COMMIT", "abc").split()
    assert len(words) == len(sources)
    asked.clear()
    tried(*words)
    assert asked == [(source, "abc", "hub") for source in sources]


def nodes(tree):
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from nodes(value)


def test_seventeen_sources_of_the_hub_stand_in_the_options():
    trees = [yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()) for group, name in OPTIONS]
    assert sum("revision" in node for tree in trees for node in nodes(tree)) == 17


EVIL = "raise SystemExit('a stranger\\'s code ran')\n"


@pytest.fixture
def silent(monkeypatch):
    """A process in which nothing may ask on the terminal."""

    def refuse(*_):
        raise AssertionError("a library asks on the terminal")

    monkeypatch.setattr(builtins, "input", refuse)
    monkeypatch.setattr("getpass.getpass", refuse)
    monkeypatch.setattr("signal.alarm", refuse)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoTokenizer"])
def test_code_in_a_models_folder_is_neither_run_nor_asked_for(kind, silent, tmp_path):
    mapped = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "evil", "auto_map": mapped, "tokenizer_class": "EvilTokenizer"}))
    (tmp_path / "evil.py").write_text(EVIL)
    with pytest.raises((ValueError, OSError, KeyError)):
        hub.pretrained(kind, tmp_path, key="text.source")
    assert not [name for name in sys.modules if name.endswith("evil")]


@pytest.mark.parametrize("key", hub.KERNELS)
def test_kernels_of_the_hub_are_programs(key, tmp_path):
    for told in ({key: "owner/kernels"}, {"text_config": {key: "owner/kernels@main"}}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **told}))
        with pytest.raises(ValueError, match=f"text.source: .*names {key}='owner/kernels"):
            hub.pretrained("AutoModel", tmp_path, key="text.source")


def test_an_adapter_names_a_model_elsewhere(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(ValueError, match="an adapter of a model that lies elsewhere"):
        hub.pretrained("AutoModel", tmp_path, key="text.source")


def test_every_loading_of_a_library_says_that_no_code_of_theirs_runs():
    """One door: whoever calls from_pretrained elsewhere leaves out what that door says."""
    from pathlib import Path

    import sora

    root = Path(sora.__file__).parent
    calls = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if ").from_pretrained(" in path.read_text()]
    programs = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if "torch.jit.load(" in path.read_text()]
    assert calls == ["system/hub.py"] and "trust_remote_code=False" in (root / "system/hub.py").read_text()
    assert programs == ["metrics/extractors/i3d_files.py"]  # see PROGRAMS of sora.config.targets
    assert torch.jit.load is not None


@pytest.mark.slow
def test_decord_is_imported_by_who_chooses_it_alone():
    import subprocess

    code = (
        "import sys, pkgutil, importlib, sora\n"
        "import sora.data\n"
        "for module in pkgutil.walk_packages(sora.data.__path__, 'sora.data.'): importlib.import_module(module.name)\n"
        "from sora.config.build import build\nfrom sora.config.compose import compose\n"
        "build(compose('train', []).config.reader)\n"
        "print('decord' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
