"""Exceptions to the rules of the house may only become fewer: see `tests/rules.py`."""

import pytest

from tests import rules


@pytest.mark.slow
def test_there_are_no_more_exceptions_than_are_listed_and_none_is_listed_that_is_gone():
    now = rules.exceptions()
    assert not rules.grown(now, rules.listed()), "\n".join(rules.grown(now, rules.listed()))
    assert now == rules.listed(), "fewer than are listed: make house ARGS=write"


FILES = {
    "train.py": "EXAMPLES = ()\n\ndef main(composed):\n    from sora.training import module\n",
    "stray.py": "from hydra._internal import utils\n\ndef of(config: DictConfig) -> None: ...\n",
    "dit/dit.py": "import torch._dynamo\nimport sora.dit.layers\n\nclass Block: ...\n\nprint(torch._C.version(), torch.nn)\n",
    "gate/files.py": "def f():\n    from sora.dit import layers\n",
    "dit/layers.py": "from . import dit\n\nclass Block: ...\n\nclass _Block: ...\n",
    "training/module.py": "def f():\n    from sora.dit import dit\n\ndef g(a, *, b: DictConfig | None): ...\n",
    **{f"vae/{number}.py": "" for number in range(16)},
    **{f"text/{number}.py": "" for number in range(15)},
    **{f"{room}/__init__.py": '"""A room."""\n' for room in ("dit", "training", "vae", "text", "gate")},
    "configs/build.py": "def build(config: DictConfig): ...\n",
    "system/torch_private.py": "from torch import _C\n",
}


def test_each_rule_sees_what_it_is_about(tmp_path, monkeypatch):
    root = tmp_path / "sora"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(rules, "ROOT", root)
    monkeypatch.setattr(rules, "REACH", {"sora.dit.dit": 1, "sora.training.module": 3, "sora.train": 3})
    rules.imports.cache_clear()
    try:
        found = rules.exceptions()
    finally:
        rules.imports.cache_clear()
    assert found == {
        "reach": {"sora.dit.dit": 2, "sora.train": 4},
        "folders": {"vae": 16},
        "beside the rooms": {"stray.py": 1},
        "circles": {"dit/dit.py": 2},
        "names": {"Block": 2},
        "against the order": {"gate/files.py imports dit/layers.py": 1},
        "configurations": {"stray.py": 1, "training/module.py": 1},
        "private names": {"dit/dit.py": 2, "stray.py": 1},
    }


def test_more_is_refused_and_what_is_less_must_be_said():
    before = {"names": {"Block": 2, "Pack": 3}, "circles": {}}
    assert rules.grown({"names": {"Block": 2}, "circles": {}}, before) == []
    assert rules.grown({"names": {"Block": 3}, "circles": {"dit/dit.py": 2}}, before) == [
        "names: Block has 3, and 2 is the most",
        "circles: dit/dit.py has 2, and 0 is the most",
    ]
