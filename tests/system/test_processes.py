"""Signals that ask a run to stop reach its children too, from the moment they exist; none may die of them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sora.system.processes import ASKING, PARENT, born_deaf, own
from sora.training.logging.sinks import Csv
from sora.training.logging.tracker import Tracker
from sora.video.decoding.guarded import GuardedReader
from sora.video.files import PYAV
from tests.data.making import counting, muxed


@pytest.fixture
def bombarded(monkeypatch):
    """Every process gets all asking signals at once when it is born, as under Slurm; the children."""
    children, start = [], subprocess.Popen

    def started(*arguments, **settings):
        child = start(*arguments, **settings)
        for number in ASKING:
            child.send_signal(number)
        children.append(child)
        return child

    monkeypatch.setattr(subprocess, "Popen", started)
    return children


def test_a_process_that_is_not_born_deaf_dies_of_a_signal_before_it_can_say_that_it_ignores_it(bombarded):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert -child.wait(30) in ASKING


def test_a_process_born_deaf_lives_and_its_parent_hears_again_afterwards(bombarded):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with born_deaf():
            code = "from sora.system.processes import ignore_asking; ignore_asking(); print(input())"
            child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            signal.raise_signal(signal.SIGUSR1)
            assert not heard
        assert heard == [signal.SIGUSR1]
        for number in ASKING:
            child.send_signal(number)
        assert child.communicate("alive", timeout=60)[0] == "alive\n"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert child.returncode == 0
    assert not set(ASKING) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_process_that_decodes_is_born_deaf(bombarded):
    content = muxed(counting(3))
    reader = GuardedReader(reader=PYAV, seconds=30, memory_gb=2, restart_after=100)
    try:
        assert (reader.read(content).frames == PYAV.read(content).frames).all()
        assert len(bombarded) == 1
    finally:
        reader.close()


def test_the_tracker_is_born_deaf(bombarded, tmp_path):
    tracker = Tracker(Csv(), folder=tmp_path, identity="one", config={}, first=0, patience=30, room=10)
    tracker.log(1, {"loss": 0.5})
    tracker.close()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "1,0.5"]
    assert tracker.problem is None


@pytest.mark.parametrize(
    ("module", "script", "found"),
    [("sora.train", "x", True), ("sora.cli", "x", True), (None, "/bin/sora", True), ("pytest", "sora", False), (None, "mine.py", False)],
)
def test_a_process_of_our_own_is_told_from_one_that_calls_a_command(monkeypatch, module, script, found):
    main = SimpleNamespace(__spec__=module and SimpleNamespace(name=module))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [script])
    assert own() is found


STARTER = """
import os, subprocess, sys, threading, time
from sora.system.processes import Parent
def start():
    parent = Parent.here()
    code = "import time; from sora.system.processes import Parent, ignore_asking; ignore_asking(); "
    code += f"Parent{(parent.process, parent.lasting)}.hold_to(); print('here', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    print(child.pid, flush=True)
if sys.argv[1] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()  # its end is not the process's
    time.sleep(1.5)
else:
    start()
print("waiting", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "number"),
    [
        *(("main", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGINT)),
        ("thread", signal.SIGKILL),
    ],
)
def test_a_child_that_hears_no_signal_ends_with_its_parent_whatever_ended_that(number, where):
    parent = subprocess.Popen([sys.executable, "-c", STARTER, where], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "waiting\n" and running(child)  # of a thread that has ended long ago, too
    parent.send_signal(number)
    assert -parent.wait(30) == number or parent.returncode
    end = time.monotonic() + 20
    while running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(child)


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_a_command_that_a_command_of_ours_started_is_asked_when_that_one_is_gone(tmp_path):
    """kill -9 of a quickstart or a sweep: the run that it started saves, and no other process takes that word for its own."""
    code = (
        "import os, signal, sys, time, pathlib; from sora.system.processes import follow_starter, PARENT\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'asked')!r}).touch(), os._exit(0)))\n"
        f"follow_starter(); assert PARENT not in os.environ; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(600)"
    )
    outer = f"import sys; from sora.system import processes; processes.command([sys.executable, '-c', {code!r}], patience=1)"
    starter = subprocess.Popen([sys.executable, "-c", outer])
    for name, then in (("ready", starter.kill), ("asked", starter.wait)):
        end = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < end, name
            time.sleep(0.02)
        then()


COUNTING = """
import os, signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: (heard.append(number), os.write(1, f"{int(number)}\\n".encode())))
from sora.system.processes import follow_starter
follow_starter()
print("ready", flush=True)
end = time.monotonic() + 60
while len(heard) < int(sys.argv[1]) and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(1.0)  # in which no more may come
sys.exit(128 + heard[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize(
    "numbers", [["SIGINT"], ["SIGINT"] * 3, ["SIGTERM"], ["SIGHUP"]], ids=lambda numbers: f"{len(numbers)}{numbers[0]}"
)
def test_a_command_that_was_started_hears_each_signal_once_whether_it_was_meant_for_all_or_its_starter(numbers, whole):
    """Heard twice, two Ctrl-C would be four, the third of which ends a run unsaved; not handed on, kill -INT would not be heard at all."""
    outer = (
        "import sys; from sora.system import processes\n"
        f"try: processes.command([sys.executable, '-c', {COUNTING!r}, '{len(numbers)}'], patience=30)\n"
        "except processes.Interrupted as asked: sys.exit(asked.code)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", outer], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None and starter.stderr is not None and starter.stdout.readline() == "ready\n"
    number = getattr(signal, numbers[0])
    for _ in numbers:
        (os.killpg if whole else os.kill)(starter.pid, number)
        assert starter.stdout.readline() == f"{int(number)}\n"  # two that wait to be heard would be one
    assert starter.stdout.read() == "" and starter.stderr.read() == ""  # and no more of them
    assert starter.wait(60) == 128 + number


@pytest.mark.slow
def test_a_signal_to_a_command_that_has_not_begun_to_listen_ends_it_without_a_traceback():
    """Python's own handler is there before any of our code: what is started is born deaf, and hears once the package is imported."""
    outer = (
        "import os, signal, sys; from sora.system import processes\n"
        "real = processes.subprocess.Popen\n"
        "def started(*words, **settings):  # the signal waits from before the interpreter starts: a signal sent from here may come late\n"
        "    return real(*words, preexec_fn=lambda: os.kill(os.getpid(), signal.SIGINT), **settings)\n"
        "processes.subprocess.Popen = started\n"
        "try: processes.command([sys.executable, '-m', 'sora.train', '--help'], patience=30)\n"
        "except processes.Interrupted as asked: sys.exit(asked.code)"
    )
    ended = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.slow
def test_a_killed_starter_takes_what_it_started_along_at_whatever_moment_it_is_killed():
    """Whether the kernel is asked already or not yet, and whether somebody waits for the starter or not."""
    inner = "from sora.system.processes import follow_starter; follow_starter(); import time; time.sleep(600)"
    outer = (
        "import os, sys; from sora.system import processes; print(os.getpid(), flush=True)\n"
        f"processes.command([sys.executable, '-c', {inner!r}], patience=5)"
    )
    draw = random.Random(0)
    for number in range(20):
        starter = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
        assert starter.stdout is not None and int(starter.stdout.readline()) == starter.pid
        time.sleep(draw.uniform(0.0, 0.6))
        started = children_of(starter.pid)
        starter.kill()
        if number % 2:
            starter.wait()
        end = time.monotonic() + 20
        while any(map(running, started)) and time.monotonic() < end:
            time.sleep(0.02)
        assert not any(map(running, started)), number
        starter.wait()


def children_of(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("starter", "code"), [("gone", -signal.SIGTERM), ("not waited for", -signal.SIGTERM), ("another", 0)])
def test_a_command_whose_starter_went_before_it_could_look_ends_and_a_grandchild_does_not(starter, code):
    gone = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert gone.stdout is not None and not gone.stdout.read()
    if starter == "not waited for":  # its number is still taken
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    else:
        gone.wait()
    between = str(os.getppid() if starter == "another" else gone.pid)  # that of a process which is there, and did not start it
    told = {**os.environ, PARENT: between}
    assert (
        subprocess.run([sys.executable, "-c", "from sora.system.processes import follow_starter; follow_starter()"], env=told).returncode
        == code
    )


def test_until_a_command_is_under_way_ctrl_c_is_no_traceback():
    code = "import os, signal, sora; print(signal.getsignal(signal.SIGINT) == signal.SIG_DFL)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout == "False\n"  # whoever imports the package keeps what was there
    code = code.replace("import os", "import sys; sys.argv[0] = '/bin/sora'; import os")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize("error", [ImportError, ValueError, AttributeError, OSError, SystemError])
def test_what_a_library_makes_of_ctrl_c_is_still_an_interruption(capsys, error):
    """numpy's imports, OmegaConf's values, whatever has an `except` of everything: none of it is the user's mistake, or ours."""
    from sora import cli

    def broken_off():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error("it could not be imported") from None

    assert cli.guarded("sample", broken_off) == 130
    assert capsys.readouterr().err == "sora sample: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ImportError, match="its own"):
        cli.guarded("sample", lambda: (_ for _ in ()).throw(ImportError("its own")))
