"""A small world to configure: a package folder with one room, and a conf folder with groups, a task and experiments."""

from pathlib import Path

ROOM = '''
"""A room of two classes, a function, and things that a configuration must not reach."""
import os
from os import system
from dataclasses import dataclass
from shutil import rmtree as clear


@dataclass
class Part:
    """A part of it."""
    depth: int
    weights: dict[str, float] | None = None


class Net:
    """A network."""
    def __init__(
        self, *, width: int, rate: float = 0.5, name: str | None = None, sizes: tuple = (), part: object = None,
        act: "Callable[[int], int]" = abs,
    ):
        self.width, self.rate, self.name, self.sizes, self.part = width, rate, name, sizes, part


def heun(predict, x, *, steps: int = 4):
    """A sampler."""
    return (predict, x, steps)


def _hidden():
    return 1


alias = os.system
'''

CONF = {
    "train.yaml": "defaults: [_self_, {task: big}, {experiment: null}]\nsteps: 10  # how many steps\n"
    "seed: 0\nresume: null\nflag: true\nfree: {}\n",
    "quickstart.yaml": "output: outputs/quickstart\n",
    "encode.yaml": "data: ???  # a folder of shards\n",
    "task/big.yaml": "# @package _global_\ndefaults: [{/net: wide}, {/sampler: heun}]\nbudget: 64\n",
    "task/small.yaml": "# @package _global_\ndefaults: [{/net: thin}]\ncrop: 8\n",
    "net/wide.yaml": "_target_: sora.toyroom.Net\nwidth: 8  # how wide\nrate: 0.1\nname: null\nsizes: [1, 2]\n"
    "part: {_target_: sora.toyroom.Part, depth: 2, weights: {short: 0.5}}\n",
    "net/thin.yaml": "_target_: sora.toyroom.Net\nwidth: 2\nrate: 0.1\nname: thin\nsizes: []\npart: null\n",
    "net/narrow.yaml": "defaults: [thin, _self_]\nwidth: 3\n",
    "sample.yaml": "net: ???  # a folder\nsampler: null\n",
    "sampler/heun.yaml": "_target_: sora.toyroom.heun\nsteps: 6\n",
    "experiment/good.yaml": "# @package _global_\ndefaults: [{override /task: small}, {override /net: narrow}]\nsteps: 5\n",
    "experiment/typo.yaml": "# @package _global_\nnet: {widht: 3}\n",
    "experiment/hydra.yaml": "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system, command: 'touch pwned'}}}\n",
    "experiment/resolver.yaml": "# @package _global_\nresume: ${oc.env:HOME}\n",
    "experiment/smuggle.yaml": "# @package _global_\nresume: os.system\nnet: {_target_: '${resume}'}\n",
    "experiment/kind.yaml": "# @package _global_\nsteps: many\n",
    "experiment/swap.yaml": "# @package _global_\nnet: {_target_: sora.toyroom.system}\n",
}


def lay_out(folder: Path) -> None:
    (folder / "toyroom").mkdir(parents=True)
    (folder / "toyroom/__init__.py").write_text(ROOM)
    for name, text in CONF.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
