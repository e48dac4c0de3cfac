"""`-m`: the runs that a command line with several values asks for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from omegaconf import DictConfig

from sora.configs.compose import compose, require_all


def split(verb: str, arguments: Sequence[str], folders: Sequence[Path]) -> list[list[str]]:
    """The overrides of each run, every one of them composed and checked. Raises ValueError if any would be refused.

    Runs that would write into one folder are given one each below it, named by what differs: OUTPUT/density=uniform,seed=0.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (runs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(arguments)), None)
    except HydraException as error:
        raise ValueError(f"the sweep cannot be read: {str(error).splitlines()[0]}") from error
    composed = [compose(verb, run, folders) for run in runs]
    for item in composed:
        require_all(item, verb)
    if len(runs) > 1 and all("output" in item.config for item in composed):
        return _apart(verb, runs)
    return runs


def _apart(verb: str, runs: Sequence[Sequence[str]]) -> list[list[str]]:
    """The runs, each with an output of its own."""
    said = [next((word.partition("=")[2] for word in run if word.startswith("output=")), f"outputs/{verb}") for run in runs]
    if len(set(said)) == len(runs):
        return [list(run) for run in runs]
    differing = [[word for word in run if any(word not in other for other in runs)] for run in runs]
    names = [re.sub(r"[^\w.,=+-]", "_", ",".join(word for word in words if not word.startswith("output="))) for words in differing]
    kept = [[word for word in run if not word.startswith("output=")] for run in runs]
    return [[*words, f"output={folder}/{name}"] for words, folder, name in zip(kept, said, names, strict=True)]


def launched(verb: str, arguments: Sequence[str], folders: Sequence[Path]) -> int:
    """Run a sweep through a Hydra launcher plugin (`hydra/launcher=submitit_slurm`); its own files go to outputs/multirun.

    Hydra is given the number of each run and the launcher's settings, nothing else: what runs was composed and checked by us.
    """
    import hydra
    from hydra.errors import HydraException

    theirs = [word for word in arguments if word.startswith("hydra")]
    unfit = [word for word in theirs if not word.startswith(("hydra/launcher=", "hydra.launcher.", "hydra.sweep.dir="))]
    if unfit:
        raise ValueError(f"{unfit[0]} is not settable; of Hydra's settings -m takes hydra/launcher=, hydra.launcher.… and hydra.sweep.dir=")
    runs = split(verb, [word for word in arguments if word not in theirs], folders)
    options = [f"--config-dir={folder.resolve()}" for folder in folders]

    def job(config: DictConfig) -> None:
        from sora.cli import run

        code = run(verb, [*runs[config.job], *options])
        if code:
            raise SystemExit(code)

    quiet = ["hydra.output_subdir=null", "hydra.job.chdir=false", "hydra/job_logging=none", f"hydra.job.name={verb}"]
    if not any(word.startswith("hydra.sweep.dir=") for word in theirs):
        quiet.append("hydra.sweep.dir=outputs/multirun/${now:%Y-%m-%d_%H-%M-%S}")
    words = [f"sora {verb}", "-m", *quiet, *theirs, f"+job={','.join(str(number) for number in range(len(runs)))}"]
    try:
        with patch.object(sys, "argv", words), patch.dict(os.environ, HYDRA_FULL_ERROR="1"):
            hydra.main(version_base="1.3", config_path=None, config_name=None)(job)()
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    return 0
