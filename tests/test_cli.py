"""The command line as a user meets it: exit codes, where messages go, flags in any order, sweeps, completion, help."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sora
from sora import cli
from sora.config import compose as compose_module
from sora.config.command_line import completion
from sora.config.command_line.verbs import Verb
from sora.system.terminal import writable
from tests.config.conftest import toy  # noqa: F401  the toy world is a fixture

CHECKOUT = Path(sora.__file__).resolve().parent.parent


@pytest.fixture
def verb(toy, monkeypatch):  # noqa: F811
    """`sora train` of the toy world, whose main gives what it was called with, or raises what it is told to."""
    seen = []

    class Module:
        error = None

        @staticmethod
        def main(composed):
            seen.append(composed.config)
            if Module.error:
                raise Module.error

    module = Module()
    module.seen, module.folder = seen, toy
    monkeypatch.setitem(sys.modules, "sora.train", module)
    monkeypatch.setattr(cli, "verbs", lambda: {"train": Verb("train", "Trains.", "Trains.\n\nAt length.", ("sora train a=1",) * 3)})
    return module


def told(capsys, *words, code):
    assert cli.main(list(words)) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_sora_alone_lists_the_verbs(capsys, verb):
    assert "train   Trains." in told(capsys, code=0)
    assert told(capsys, "--version", code=0).strip() == f"sora {sora.__version__}"


def test_an_unknown_verb_or_option_names_the_right_one(capsys, verb):
    assert "did you mean 'train'" in told(capsys, "trian", code=2)
    message = told(capsys, "train", "--confg-dir", "x", code=2)
    assert "did you mean '--config-dir'" in message and message.startswith("sora train: ") and message.count("\n") == 1
    assert "not an option: write KEY=VALUE" in told(capsys, "train", "steps", code=2)
    assert "needs a value" in told(capsys, "train", "--config-dir", code=2)


def test_flags_may_stand_between_overrides(capsys, verb, tmp_path):
    (tmp_path / "mine/net").mkdir(parents=True)
    (tmp_path / "mine/net/own.yaml").write_text("_target_: sora.toyroom.Net\nwidth: 77\n")
    assert cli.main(["train", "steps=3", "--config-dir", str(tmp_path / "mine"), "net=own", "seed=4"]) == 0
    (config,) = verb.seen
    assert (config.steps, config.seed, config.net.width) == (3, 4, 77)


def test_cfg_job_shows_and_does_not_run(capsys, verb):
    text = told(capsys, "train", "--cfg", "job", "steps=3", code=0)
    assert "steps: 3" in text and "hydra" not in text and not verb.seen
    assert "can be shown is 'job'" in told(capsys, "train", "--cfg", "hydra", code=2)


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, verb):
    type(verb).error = ValueError("clip x.mp4 is damaged; remove it")
    assert told(capsys, "train", code=2) == "sora train: clip x.mp4 is damaged; remove it\n"


def test_ctrl_c_is_130(capsys, verb):
    type(verb).error = KeyboardInterrupt()
    assert told(capsys, "train", code=130) == "sora train: interrupted\n"


def test_a_full_disk_is_told_by_file(capsys, verb):
    type(verb).error = OSError(28, "No space left on device", "/out/video-000000.tar")
    assert told(capsys, "train", code=1) == "sora train: No space left on device: /out/video-000000.tar; free some space\n"


def test_our_own_mistakes_keep_their_traceback(verb):
    for error in (RuntimeError("ours"), OSError(9, "Bad file descriptor")):
        type(verb).error = error
        with pytest.raises(type(error)):
            cli.main(["train"])


def test_what_must_be_given_is_asked_for(capsys, verb, monkeypatch):
    (verb.folder / "conf/train.yaml").write_text("data: ???\n")
    assert "needs data=…" in told(capsys, "train", code=2) and not verb.seen


@pytest.mark.slow
def test_a_sweep_runs_every_combination_in_a_process_of_its_own(capsys, verb, monkeypatch):
    calls, codes = [], iter([0, 1, 0, 0])
    monkeypatch.setattr(cli, "run_command", lambda command, patience: calls.append(command[1:]) or next(codes))
    message = told(capsys, "train", "-m", "net=wide,thin", "seed=1,2", "steps=7", code=1)
    assert calls == [["-m", "sora.train", f"net={net}", f"seed={seed}", "steps=7"] for net in ("wide", "thin") for seed in (1, 2)]
    assert "1 of 4 runs failed: 2" in message


def test_a_sweep_with_one_bad_value_runs_nothing(capsys, verb, monkeypatch):
    monkeypatch.setattr(cli, "run_command", lambda command, patience: pytest.fail("ran"))
    assert "there is no net=thinn" in told(capsys, "train", "-m", "net=wide,thinn", code=2)


@pytest.mark.slow
def test_a_sweep_stops_at_ctrl_c(verb, monkeypatch, capsys):
    calls = []

    def interrupted(command, patience):
        calls.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    assert cli.main(["train", "-m", "seed=1,2,3"]) == 130 and len(calls) == 1


@pytest.mark.slow
def test_a_hydra_launcher_may_run_the_sweep(verb, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "-m", "seed=1,2", "hydra/launcher=basic"]) == 0
    assert [config.seed for config in verb.seen] == [1, 2]
    assert "is not settable" in told(capsys, "train", "-m", "seed=1,2", "hydra.callbacks.x._target_=os.system", code=2)


def test_the_help_page_tells_groups_keys_and_examples(capsys, verb):
    text = told(capsys, "train", "task=small", "--help", code=0)
    for part in (
        "At length.",
        "big *small",
        "*thin wide",
        "steps=10",
        "how many steps",
        "net.width=2",
        "crop=8",
        "sora train a=1",
        "--config-dir",
    ):
        assert part in text, part
    assert "_target_" not in text and "how wide" not in text  # the comment belongs to the option that is not in force
    assert "how wide" in told(capsys, "train", "--help", code=0)


def test_completion_knows_verbs_groups_options_and_keys(verb):
    assert completion.candidates("sora tr") == ["train"]
    assert {"net=", "task=", "experiment=", "steps=", "net."} <= set(completion.candidates("sora train "))
    assert completion.candidates("sora train net=") == ["net=narrow", "net=thin", "net=wide"]
    assert completion.candidates("sora train task=small cr") == ["crop="]
    assert completion.candidates("sora train net=thin,w") == ["net=thin,wide"]
    assert "net.part.depth=" in completion.candidates("sora train net.")
    assert completion.candidates("sora train mistake --c") == ["--config-dir", "--cfg"]
    assert completion.candidates("sora completion z") == ["zsh"]


BASH = """
eval "$({sora} completion bash)"
sora() {{ {sora} "$@"; }}
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
{words}
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
_sora_complete
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "words", "wanted"),
    [
        ("sora quicks", ("sora", "quicks"), "quickstart"),
        ("sora quickstart scale=", ("sora", "quickstart", "scale", "="), "toy"),
        ("sora quickstart scale=t", ("sora", "quickstart", "scale", "=", "t"), "toy"),
        ("sora quickstart outp", ("sora", "quickstart", "outp"), "output="),
    ],
)
def test_bash_completes(line, words, wanted):
    """As bash calls it, which cuts words at '=' and wants only the last piece back."""
    array = f"COMP_WORDS=({' '.join(repr(word) for word in words)})"
    script = BASH.format(sora=f"{sys.executable} -m sora.cli", line=line, words=array)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert wanted in done.stdout.split("\n"), done


def test_the_module_is_the_same_program_from_any_directory(tmp_path):
    command = [sys.executable, "-m", "sora.quickstart", "outptu=x"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"}, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("sora quickstart: ") and "did you mean 'output'" in done.stderr
    assert not any(tmp_path.iterdir())


def test_help_imports_no_torch():
    code = "import sys; from sora.cli import main; main(['quickstart', '--help']); import json; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) is False


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "koi8-r"])
def test_what_is_printed_survives_every_terminal(monkeypatch, encoding):
    """Strict, as a terminal's encoding is: glyphs of our own get letters, others their codes, and what the terminal has stays as it is."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    writable()
    print("▇█▌ a–b … 3 × 4, ±1 🎈 Ж", "\udcff.mp4 ü")
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert ("ü" in text) == ("ü".encode(encoding, "ignore") != b"") and "a" in text and ".mp4" in text and "\\udcff" in text
    if encoding != "utf-8":
        assert "##" in text or "█" in text
        assert "\\U0001f388" in text
    else:
        assert "█▌ a–b … 3 × 4, ±1 🎈 Ж" in text


def test_a_whole_page_of_help_fits_on_an_old_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "sora.cli", "sample", "--help"],
        capture_output=True,
        cwd=CHECKOUT,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=True,
    )
    assert b"checkpoint=..." in done.stdout and not done.stderr


def test_what_is_missing_is_told_before_anything_heavy_is_imported(tmp_path):
    """In one process: what one of them imported would be there after the last."""
    asked = [["train"], ["plan", "task=vae"], ["train", "launcher=slurm", "output=x"], ["encode"], ["sample"]]
    code = f"import sys; from sora.cli import main; print([main(words) for words in {asked!r}], {{'torch', 'pyarrow'}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(CHECKOUT)}, check=True
    )
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 2, 2] set()", done
    told = done.stderr.splitlines()
    assert [line.split(":")[0] for line in told] == [f"sora {words[0]}" for words in asked] and all(" needs " in line for line in told)
    assert not any(tmp_path.iterdir())


def test_a_broken_installation_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(compose_module, "__file__", str(tmp_path / "sora/config/compose.py"))
    with pytest.raises(ValueError, match="install sora again"):
        compose_module.config_dir()


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "loop/below"])
def test_a_path_that_can_be_of_nothing_is_one_line_and_exit_code_2(capsys, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    assert cli.guarded("prepare", lambda: Path(name).mkdir(parents=True)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sora prepare: ")
    assert f": {name}; name another place" in line


def test_a_mistake_says_which_rank_it_is_on_where_there_are_several(capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    def fails() -> int:
        raise ValueError("shards/x is missing")

    assert cli.guarded("train", fails) == 2
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURMD_NODENAME", "vn2")
    assert cli.guarded("train", fails) == 2
    assert capsys.readouterr().err == "sora train: shards/x is missing\nsora train (rank 3 on vn2): shards/x is missing\n"
