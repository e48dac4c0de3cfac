"""The command line: `sora VERB …`, which is `python -m sora.VERB …`.

This module imports nothing heavy: `sora --help` answers in well under a second, and a mistake is told before torch is imported.
"""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sora
from sora.config import own
from sora.config.command_line.flags import Flags, parse, passed_on
from sora.config.command_line.verbs import verbs, worded
from sora.config.words import listed, meant
from sora.gate import trust
from sora.system.processes import Interrupted, Interrupts, follow_starter
from sora.system.processes import command as run_command
from sora.system.started import leave, started
from sora.system.terminal import Lines, counted, in_utf8, line, outlive, shown, styled, writable

if TYPE_CHECKING:
    from sora.config.compose import Composed

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130
PATIENCE = 120.0  # seconds in which a run of a sweep that is asked to stop has to save
LAUNCHER = "launcher"  # the group that says where a command runs
# verbs whose work is files, whoever listens
MAKING = ("encode", "evaluate", "export", "prepare", "quickstart", "recaption", "sample", "train")
SHARING = ("train", "evaluate")  # verbs whose work the ranks share that torchrun or srun started
# Errors of the machine that a user can mend, told in one line; any other OSError is ours and gets its traceback.
PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}  # of a path that was given, and can be of nothing
TOP = """
sora VERB --help        what a verb does, its groups and keys, and examples
sora VERB --cfg job     the configuration that a command would run with
sora --version
eval "$(sora completion bash)"      completes verbs, groups, options and keys (also: zsh, fish)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code: 0 done, 1 failed, 2 a mistake of the user's, 128 + N asked by signal N (130: Ctrl-C)."""
    words = _begun(argv)
    if not words or words[0] in ("--help", "-h", "help"):
        print(listing())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"sora {sora.__version__}")
        return 0
    if words[0] == "completion":
        from sora.config.command_line import completion

        return guarded("completion", lambda: completion.main(words[1:]))
    if words[0] not in verbs():
        print(f"sora: there is no verb {words[0]!r}{meant(words[0], verbs())}; the verbs: {listed(verbs())}", file=sys.stderr)
        return USER_ERROR
    return run(words[0], words[1:])


def _begun(argv: Sequence[str] | None) -> list[str]:
    """The words of a command, of this process where `argv` is None, which can print and ends with who started it from here on."""
    if argv is None:
        in_utf8()
    writable()
    follow_starter()
    return list(sys.argv[1:] if argv is None else argv)


def listing() -> str:
    width = max((len(name) for name in verbs()), default=0)
    lines = [f"  {verb.name:<{width}}   {verb.line}" for verb in verbs().values()]
    return "\n".join([f"{sora.__doc__}", "", "usage: sora VERB [GROUP=OPTION ...] [KEY=VALUE ...]", "", *lines, TOP.rstrip()])


def run(verb: str, argv: Sequence[str] | None = None) -> int:
    """Compose and check the configuration of a verb and call its `main`; the exit code, with errors told on stderr."""
    # Read when torch loads. Threads of a GNU OpenMP that spin for long take the core from whoever shares it: one other busy
    # process made a training step 20 times slower. With a short spin it costs 4 % on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    words = _begun(argv)
    return guarded(verb, lambda: _run(verb, words))


def guarded(verb: str, work: Callable[[], int | None]) -> int:
    """Call `work`; a user's mistake becomes one line and exit code 2, Ctrl-C 130, anything else a traceback and 1."""
    with Interrupts() as interrupts:
        try:
            return _told(verb, work, interrupts)
        except BaseException:
            if not interrupts.came:
                raise
            print(f"sora {verb}: interrupted", file=sys.stderr)  # whatever a library that was broken off has made of it
            return INTERRUPTED


def _told(verb: str, work: Callable[[], int | None], interrupts: Interrupts) -> int:
    try:
        return work() or 0
    except ValueError as error:
        if interrupts.came:  # OmegaConf makes an error of a configuration of it
            raise
        _tell(verb, shown(str(error)) if isinstance(error, Lines) else line(str(error)))
        if os.environ.get("SORA_TRACEBACK"):
            traceback.print_exc()
        return USER_ERROR
    except KeyboardInterrupt as error:
        print(f"sora {verb}: interrupted", file=sys.stderr)
        return error.code if isinstance(error, Interrupted) else INTERRUPTED
    except BrokenPipeError:  # `sora train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ConnectionError as error:
        if error.errno is not None:
            raise
        _tell(verb, line(str(error)))  # a store's own words: it does not answer
        return FAILED
    except OSError as error:
        if error.errno in NAME_ERRORS or _unmakeable(error):
            _tell(verb, f"{error.strerror}: {line(str(error.filename))}; name another place")
            return USER_ERROR
        if error.errno not in PLACE_ERRORS:
            raise
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another place or change its permissions"
        _tell(verb, f"{error.strerror}: {line(str(error.filename or 'while writing'))}; {advice}")
        return FAILED


def _unmakeable(error: OSError) -> bool:
    """Whether an error is of a file or folder that was to be made where nothing can be."""
    from sora.system.files import blocked

    if error.errno not in (errno.ENOENT, errno.EEXIST) or not isinstance(error.filename, str):
        return False
    path = Path(error.filename)
    return (path.is_symlink() and not path.exists()) or blocked(path) is not None


def _tell(verb: str, error: str) -> None:
    print(told := f"sora {verb}{_who()}: {error}", file=sys.stderr)
    leave(told)


def _who() -> str:
    """Which rank speaks, and from which machine, where there are several: a folder that one node lacks is that node's."""
    try:
        here = started()
    except ValueError:  # which may be what is told
        return ""
    return f" (rank {here.rank} on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()})" if here.ranks > 1 else ""


def _run(verb: str, words: list[str]) -> int | None:
    outlive(verb in MAKING)
    flags = parse(words)
    with own.naming(flags.own):
        return _run_with(verb, flags)


def _run_with(verb: str, flags: Flags) -> int | None:
    flags.overrides = worded(verbs()[verb], flags.overrides)
    if flags.version:
        print(f"sora {sora.__version__}")
        return 0
    if flags.multirun:
        return sweep(verb, flags)
    from sora.config.compose import compose, require_all

    composed = compose(verb, flags.overrides, flags.folders)
    if flags.help:
        from sora.config.command_line.help import page

        styled(page(verbs()[verb], composed, flags.folders, colour=sys.stdout.isatty()))
        return 0
    if flags.show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(composed.config), end="")
        return 0
    require_all(composed, verb, verbs()[verb].bare)
    if (launched := bool(composed.config.get(LAUNCHER))) or verb not in SHARING:
        refuse_ranks(f"sora {verb}{' launcher=…' if launched else ''}", part=composed.config.get("part"))
    if launched:
        return submitted(verb, composed, flags)
    from omegaconf import OmegaConf

    from sora.config.own_runs import load_used
    from sora.system import hub
    from sora.system.files import refuse_blocked, refuse_read_only

    refuse_blocked(composed.writes)
    if place := composed.writes.get("output"):
        refuse_read_only(Path(place), f"output={place}")  # before what takes hours is made for it
    tree = OmegaConf.to_container(composed.config, resolve=False)
    load_used(tree)
    with hub.named(tree) as models, trust.allowing([*flags.allow, *models]), passed_on(flags.folders):
        return importlib.import_module(f"sora.{verbs()[verb].module or verb}").main(composed)


def refuse_ranks(command: str, *, part: object = None) -> None:
    """Raise ValueError if a launcher started several of this process: each would do the whole work, into one folder. part: its share."""
    here = started()
    if here.ranks > 1 and part is None:
        raise ValueError(
            f"{here.ranks} ranks were started ({here.by}), and {command} is the work of one: each would do all of it, into the same place. "
            "Start one (srun --ntasks=1), or give each its part=[K,N] if the verb has that key"
        )


def submitted(verb: str, composed: Composed, flags: Flags, runs: Sequence[Sequence[str]] = ()) -> int:
    """Hand the command, or the `runs` of a sweep, to its launcher instead of running it; 0 once it is in the queue."""
    from sora.config.build import build
    from sora.config.compose import compose

    launcher = build(composed.config[LAUNCHER])
    named = [[*(word for word in words if not _launches(word)), *flags.again()] for words in runs or [flags.overrides]]
    if verb == "train" and any(not any(word.startswith("output=") for word in words) for words in named):
        raise ValueError("a job of a cluster goes on in its own folder: name it with output=FOLDER")
    if verb == "train":
        for words in runs or [flags.overrides]:
            config = compose(verb, words, flags.folders).config
            launcher.refuse_ranks(config.trainer, packs=config.plan.packs)
    made = launcher.array(verb, named, Path("outputs") / "jobs") if runs else launcher.job(verb, named[0])
    if launcher.dry:
        print(made.shown())
        return 0
    number = made.submit()
    what = f"{counted(len(runs), 'run')} as array" if runs else "as job"
    log = f"slurm-{number}{'-N' if runs else '*'}.log"
    print(f"submitted {what} {number}; squeue -j {number} shows {'them' if runs else 'it'}, the output goes to {log}")
    return 0


def _launches(word: str) -> bool:
    return word.startswith((f"{LAUNCHER}=", f"{LAUNCHER}."))


def sweep(verb: str, flags: Flags) -> int:
    """`-m`: one process for each combination of `key=a,b` values, one after another; every one is composed before the first runs.

    A process each keeps a run what it would be alone. `launcher=slurm` submits the sweep as one array instead, `hydra/launcher=…` hands
    it to that Hydra plugin.
    """
    from sora.config.command_line.sweep import launched, split
    from sora.config.compose import compose
    from sora.report.sweeps import ended, later

    if flags.help or flags.show:
        raise ValueError("-m runs; leave it away to see the help or the configuration")
    refuse_ranks(f"sora {verb} -m")
    if any(word.lstrip("+").startswith("hydra") for word in flags.overrides):
        with trust.allowing(flags.allow):
            return launched(verb, flags, run=run)
    found = split(verb, flags.overrides, flags.folders)
    if any(_launches(word) for word in flags.overrides):
        composed = compose(verb, found.runs[0], flags.folders)
        code = submitted(verb, composed, flags, found.runs)
        if not composed.config[LAUNCHER].dry:
            found.record()
            print(*later(verb, found), sep="\n")
        return code
    found.record()
    codes, asked = [], 0
    for number, overrides in enumerate(found.runs, 1):
        print(f"[{number}/{len(found.runs)}] sora {shlex.join([verb, *overrides])}", flush=True)
        words = [sys.executable, "-m", f"sora.{verbs()[verb].module or verb}", *overrides, *flags.again()]
        try:
            codes.append(run_command(words, patience=PATIENCE))
        except KeyboardInterrupt as error:
            asked = error.code if isinstance(error, Interrupted) else INTERRUPTED
            print(f"sora {verb}: interrupted in run {number} of {len(found.runs)}", file=sys.stderr)
            break
    failed = [number for number, code in enumerate(codes, 1) if code]
    if failed:
        print(f"sora {verb}: {len(failed)} of {counted(len(found.runs), 'run')} failed: {', '.join(map(str, failed))}", file=sys.stderr)
    print("".join(f"{told}\n" for told in ended(verb, found)), end="")
    return asked or max(codes, default=0)


if __name__ == "__main__":
    raise SystemExit(main())
