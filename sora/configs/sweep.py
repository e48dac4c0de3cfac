"""`-m`: the runs that a command line with several values asks for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from omegaconf import DictConfig

from sora.configs.compose import compose, config_dir, quoted, require_all


def split(verb: str, arguments: Sequence[str], folders: Sequence[Path]) -> list[list[str]]:
    """The overrides of each run, every one of them composed and checked. Raises ValueError if any would be refused."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (runs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(arguments)), None)
    except HydraException as error:
        raise ValueError(f"the sweep cannot be read: {str(error).splitlines()[0]}") from error
    for run in runs:
        require_all(compose(verb, run, folders), verb)
    return runs


def launched(verb: str, arguments: Sequence[str], folders: Sequence[Path]) -> int:
    """Run a sweep through a Hydra launcher or sweeper plugin (`hydra/launcher=submitit_slurm`); its own files go to outputs/multirun.

    The sweep is composed by us first: no file of ours or of `folders` reaches the settings by which Hydra would call something.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    own = [word for word in arguments if not word.startswith("hydra")]
    theirs = [word for word in arguments if word.startswith("hydra")]
    split(verb, own, folders)

    def job(config: DictConfig) -> None:
        from sora.cli import run

        code = run(verb, [*HydraConfig.get().overrides.task, *(f"--config-dir={folder}" for folder in folders)])
        if code:
            raise SystemExit(code)

    search = ",".join(quoted(f"file://{folder.resolve()}") for folder in folders)
    quiet = ["hydra.output_subdir=null", "hydra.job.chdir=false", "hydra.sweep.dir=outputs/multirun/${now:%Y-%m-%d_%H-%M-%S}"]
    quiet += ["hydra/job_logging=none"] + ([f"hydra.searchpath=[{search}]"] if search else [])
    try:
        with patch.object(sys, "argv", [f"sora {verb}", "-m", *quiet, *theirs, *own]), patch.dict(os.environ, HYDRA_FULL_ERROR="1"):
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=verb)(job)()
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    return 0
