"""The page about the metrics in other people's code: its block runs as it stands, and its figures are those that it names."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import torch

from sora.metrics.distribution.comparison import compare_features
from sora.metrics.extractors.features import VideoFeatures

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def test_the_block_of_the_page_runs_in_ten_lines_and_sees_the_difference(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    exec(compile(block, "docs/metrics.md", "exec"), {})
    distance, floor, p = map(float, capsys.readouterr().out.split())
    assert distance > floor and p == 1 / 80


def test_the_page_names_every_figure_of_a_distance():
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randn(200, 3, generator=draw) for _ in range(2))
    found = compare_features(one, two + 1, key="x", ddof=1, seed=0, bootstrap=20, permutations=19, neighbours=5)
    parts = {name.split("/")[2] for name in found if name.count("/") == 2}
    table = PAGE[PAGE.index("| figure | says |") : PAGE.index("`kvd` is unbiased")]
    assert parts - {"infinite_slope", "infinite_r2"} <= set(re.findall(r"`(\w+)`", table))


def test_the_classes_of_the_page_are_there():
    named = re.findall(r"`((?:metrics|world)(?:\.\w+)+)\.(\w+)`", PAGE)
    functions = [(f"metrics.distribution.{module}", name) for module, name in re.findall(r"`(\w+)\.(\w+)`", PAGE)]
    assert len(named) >= 6
    for module, name in [*named, *(pair for pair in functions if pair[0].rpartition(".")[2] not in ("torch", "sora"))]:
        assert callable(getattr(import_module(f"sora.{module}"), name)), (module, name)


def test_the_extractors_of_the_page_are_made_as_it_says():
    """Their arguments are all that they take; those that need no file are made and keep to the protocol."""
    made = re.findall(r"`extractors\.(\w+)\.(\w+)\((.*?)\)`", PAGE)
    assert len(made) == 5
    for module, name, said in made:
        kind = getattr(import_module(f"sora.metrics.extractors.{module}"), name)
        given = eval(f"dict({said})")
        inspect.signature(kind).bind(**given)
        if "path" not in given:
            assert isinstance(kind(**given), VideoFeatures)
    named = re.findall(r"`extractors\.(\w+)\.(\w+)`", PAGE)
    assert named and all(hasattr(import_module(f"sora.metrics.extractors.{module}"), name) for module, name in named)
