"""Training under a real Slurm, on two nodes: whatever ends a job, the run goes on in its folder as if nothing had."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from tests.curation.material import content, folder_of_videos
from tests.slurm.cluster import Cluster, Job, lacking
from tests.training.test_resume import TIMINGS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, INJECTED = ROOT / "slurm", Path(__file__).with_name("injected.py")
STEPS, EVERY = 120, 50
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
cli = importlib.import_module("sora.cli")


class Lab:
    """A cluster, a folder with a tiny world and the scripts, in whose path there are spaces and a quote, and jobs that train on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.scripts = cluster, folder, folder / "my scripts"

    def variables(self, **more: str) -> dict[str, str]:
        python = f"{sys.executable} {INJECTED}"
        return {"SORA_PYTHON": python, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **more}

    def train(self, name: str, *options: str, steps: int = STEPS, nodes: int = 2, workers: int = 0, **variables: str) -> str:
        """Submit the training of a toy VAE into the folder `name`, a task on each node, with the default trainer; the job's number."""
        words = ["experiment=toy_vae", "data.folders=[world]", f"output={name}", f"steps={steps}", "log_every=1", "plan.packs=2"]
        words += ["plan.shapes=[[5,16,16],[1,16,16]]", f"checkpoint.every={EVERY}", "trainer.threads=1", f"workers={workers}"]
        asked = [f"--nodes={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={name}.log", f"--job-name={name}"]
        sent = self.variables(**variables)
        return self.cluster.submit(*asked, *options, str(self.scripts / "train.sbatch"), *words, variables=sent, cwd=self.folder)

    def rows(self, name: str) -> list[dict]:
        found = read(self.folder / name / "metrics.jsonl") if (self.folder / name / "metrics.jsonl").exists() else []
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in found]

    def reached(self, number: str, name: str, step: int) -> None:
        self.cluster.wait(number, lambda _: len(self.rows(name)) >= step)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def hashes(self, name: str) -> dict[str, str]:
        last = checkpoint.folder_of(self.folder / name / "checkpoints", STEPS)
        found = {path.name: storage.file_hash(path) for path in last.glob("*.safetensors")}
        assert {name.split("-")[0].removesuffix(".safetensors") for name in found} == {"model", "ema", "optimizer", "rng"}
        return found

    def assert_complete(self, name: str, job: Job, *, restarts: int) -> None:
        assert (job.state, job.restarts) == ("COMPLETED", restarts), self.log(name)[-2000:]
        assert self.log(name).count("back into the queue") == restarts
        assert self.rows(name) == self.rows("whole")
        assert self.hashes(name) == self.hashes("whole")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    if why := lacking():
        pytest.fail(f"no Slurm can be started here: {why}")
    home = tmp_path_factory.mktemp("slurm")
    shutil.copytree(SCRIPTS, (folder := home / "a lab of ü's") / "my scripts")
    monkeypatch.chdir(folder)
    world = ["source=world", "output=world", "count=12", "workers=0", "source.world.sizes=[[24,24]]"]
    assert cli.run("prepare", [*world, "source.world.seconds=[1.0]", "source.world.rates=[8]"]) == 0
    with Cluster(home / "cluster") as cluster:
        made = Lab(cluster, folder)
        # the reference, and what needs no other job's end; the nodes run two jobs at once
        whole = made.train("whole")
        made.limited = made.train("limited", "--time=2", "--signal=USR1@45", SORA_TEST_PAUSE="1")  # asked after 45 to 75 s
        job = cluster.ended(whole)
        assert (job.state, job.restarts) == ("COMPLETED", 0), made.log("whole")[-3000:]
        assert [row["step"] for row in made.rows("whole")] == list(range(1, STEPS + 1))
        assert "training in 32-true: 2 ranks (srun: SLURM_STEP_NUM_TASKS=2) on 2 x 1 CPUs as trainer=ddp" in made.log("whole")
        yield made
    monkeypatch.undo()


def test_a_killed_rank_ends_the_job_which_goes_on_from_its_checkpoint(lab):
    number = lab.train("killed", SORA_TEST_DIES="1@70")
    lab.assert_complete("killed", lab.cluster.ended(number), restarts=1)
    assert "a rank ended with 137" in lab.log("killed")


def test_a_killed_loader_worker_is_told_its_step_saved_and_the_job_goes_on(lab):
    """Of the second rank alone: both stop after the same step."""
    number = lab.train("unloaded", workers=1, SORA_TEST_LOSES="1@70")
    lab.assert_complete("unloaded", lab.cluster.ended(number), restarts=1)
    told = lab.log("unloaded")
    assert "a rank ended with 137" in told and "rank 1: loader worker 0 (process " in told and "Traceback" not in told


def test_a_job_that_dies_three_times_with_nothing_saved_in_between_stays_away(lab):
    number = lab.train("dying", SORA_TEST_DIES="0@3 always")
    job = lab.cluster.ended(number)
    assert (job.state, job.restarts) == ("FAILED", 2)
    assert not list((lab.folder / "dying" / "checkpoints").glob("step-*"))


def test_at_the_time_limit_the_job_saves_and_goes_on_in_the_same_folder(lab):
    number = lab.limited
    job = lab.cluster.ended(number)
    assert job.restarts >= 1
    lab.assert_complete("limited", job, restarts=job.restarts)


def test_a_cancelled_job_saves_its_step_and_stays_away(lab):
    number = lab.train("cancelled", SORA_TEST_PAUSE="0.1")
    lab.reached(number, "cancelled", 5)
    lab.cluster.call("scancel", number)
    lab.cluster.wait(number, lambda _: "stopped and saved" in lab.log("cancelled"))
    job = lab.cluster.ended(number)
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    rows = lab.rows("cancelled")
    assert checkpoint.step_of(checkpoint.newest(lab.folder / "cancelled" / "checkpoints")) == rows[-1]["step"]
    assert rows == lab.rows("whole")[: len(rows)]


def test_a_preempted_job_saves_goes_back_into_the_queue_once_and_ends_as_if_never_stopped(lab):
    number = lab.train("preempted", SORA_TEST_PAUSE="0.05")
    lab.reached(number, "preempted", 5)
    urgent = lab.cluster.submit("-p", "urgent", "-N2", "--exclusive", "--wrap", "true", variables={}, cwd=lab.folder)
    assert lab.cluster.ended(urgent).state == "COMPLETED"
    lab.assert_complete("preempted", lab.cluster.ended(number), restarts=1)
    assert "as this job is preempted" in lab.log("preempted")


def test_a_mistake_of_the_users_is_told_once(lab):
    number = lab.train("mistaken", steps=-1)
    job = lab.cluster.ended(number)
    assert (job.state, job.restarts, job.code) == ("FAILED", 0, "2:0")
    assert "steps" in lab.log("mistaken")


def test_a_sweep_becomes_an_array_and_every_run_has_a_folder(lab):
    words = [
        "experiment=toy_vae",
        "data.folders=[world]",
        "output=sweep",
        "seed=0,1",
        "max_grad_norm=1.0,0.5",
        "steps=2",
        "plan.shapes=[[5,16,16]]",
    ]
    asked = ["launcher=slurm", "launcher.cpus=1", "launcher.time=30", "launcher.at_once=2"]
    environment = {**lab.cluster.environment, **lab.variables()}
    done = subprocess.run(
        [sys.executable, "-m", "sora.train", "-m", *asked, *words], env=environment, cwd=lab.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    number = done.stdout.partition("as array ")[2].partition(";")[0]
    combinations = [f"seed={seed},max_grad_norm={norm}" for seed in (0, 1) for norm in ("1.0", "0.5")]
    for place, name in enumerate(combinations):
        assert lab.cluster.ended(f"{number}_{place}").state == "COMPLETED"
        assert checkpoint.step_of(checkpoint.newest(lab.folder / "sweep" / name / "checkpoints")) == 2


def test_any_verb_runs_as_an_array_and_evaluation_as_a_job(lab):
    commands = [f"prepare source=world output=shards-{part} count=3 workers=0 source.world.seed={part} source.heldout=4" for part in (0, 1)]
    (lab.folder / "commands").write_text("\n".join(commands) + "\n")
    python = lab.variables(SORA_PYTHON=sys.executable)
    asked = ["--cpus-per-task=1", "--output=job-%a.log"]
    array = lab.cluster.submit(*asked, "--array=0-2", str(lab.scripts / "array.sbatch"), "commands", variables=python, cwd=lab.folder)
    scored = ["checkpoint=whole", "data=world", "n=4", "keep=0"]
    asked[1] = "--output=evaluate.log"
    number = lab.cluster.submit(*asked, str(lab.scripts / "evaluate.sbatch"), *scored, variables=python, cwd=lab.folder)
    assert [lab.cluster.ended(f"{array}_{part}").state for part in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert lab.cluster.ended(f"{array}_2").state == "FAILED"
    assert "has no line 2" in (lab.folder / "job-2.log").read_text()
    facts = [storage.read_json(lab.folder / f"shards-{part}" / "dataset.json") for part in (0, 1)]
    assert facts[0]["fingerprint"] != facts[1]["fingerprint"]
    assert lab.cluster.ended(number).state == "COMPLETED", lab.log("evaluate")
    assert list((lab.folder / "whole").rglob("scores.json"))


def test_two_parts_of_a_curation_end_in_the_dataset_that_one_job_makes(lab):
    said = ["cuts=none", "spans.least_seconds=0.5", "transcode.size=null", "transcode.multiple=2", "engine.workers=1", "output=work"]
    said.append(f"input={folder_of_videos(lab.folder / 'videos', 2)}")
    environment = {**lab.cluster.environment, **lab.variables(SORA_PYTHON=sys.executable)}
    asked = ["-m", "launcher=slurm", "launcher.cpus=1", "launcher.time=10", "part=[0,2],[1,2]"]
    told = {}
    for name, more in (("array", asked), ("alone", [])):
        (lab.folder / name).mkdir()
        words = [sys.executable, "-m", "sora.curate", *more, *said]
        done = subprocess.run(words, env=environment, cwd=lab.folder / name, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told[name] = done.stdout
    number = told["array"].partition("as array ")[2].partition(";")[0]
    assert [lab.cluster.ended(f"{number}_{part}").state for part in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert content(lab.folder / "array/work") == content(lab.folder / "alone/work")


def test_ranks_are_those_that_srun_started_and_no_others(lab):
    """A batch script and a task of it; more tasks than a trainer lays out, and one process where tasks were asked for."""
    words = "-m sora.train experiment=toy_vae data.folders=[world] output=others steps=2 'plan.shapes=[[5,16,16]]' plan.packs=2"
    asked = ["-N2", "--ntasks=2", "--cpus-per-task=1", "--output=others.log", "--wrap"]
    tried = f"{sys.executable} {words}; srun {sys.executable} {words} trainer=cpu; env | grep '^SLURM_\\(STEP\\|PROCID\\|NTASKS\\)'; false"
    number = lab.cluster.submit(*asked, tried, variables=lab.variables(), cwd=lab.folder)
    assert lab.cluster.ended(number).state == "FAILED"
    said = lab.log("others")
    assert "SLURM_NTASKS=2, this process was started without srun" in said, said
    assert said.count("2 ranks were started (srun: SLURM_STEP_NUM_TASKS=2), but trainer=cpu lays out 1 rank; trainer=ddp") == 2, said
    assert not (lab.folder / "others").exists()
    plain = f"srun {sys.executable} {words} trainer.threads=1"  # --ntasks alone, and nobody has said at which port to meet
    asked = ["-N1", "--ntasks=2", "--cpus-per-task=1", "--output=plain.log", "--wrap"]
    number = lab.cluster.submit(*asked, plain, variables=lab.variables(), cwd=lab.folder)
    assert lab.cluster.ended(number).state == "COMPLETED", lab.log("plain")
    assert [row["step"] for row in lab.rows("others")] == [2], lab.log("plain")


def test_what_slurm_refuses_is_told_before_anything_runs(lab):
    environment = {**lab.cluster.environment, **lab.variables()}
    words = ["experiment=toy_vae", "data.folders=[world]", "output=refused", "launcher=slurm", "launcher.partition=nowhere"]
    done = subprocess.run([sys.executable, "-m", "sora.train", *words], env=environment, cwd=lab.folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere" in done.stderr or "partition" in done.stderr.lower()
    assert not (lab.folder / "refused").exists()


def test_torchrun_starts_ranks_that_end_where_slurms_do(lab):
    words = ["experiment=toy_vae", "data.folders=[world]", "output=torchrun", f"steps={STEPS}", "log_every=1", "plan.packs=2"]
    words += ["plan.shapes=[[5,16,16],[1,16,16]]", f"checkpoint.every={EVERY}", "trainer=ddp", "trainer.accelerator=cpu"]
    words += ["trainer.devices=2", "trainer.precision=32-true", "trainer.deterministic=true", "trainer.threads=1"]
    environment = {**lab.cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sora.train"]
    done = subprocess.run([*run, *words], env=environment, cwd=lab.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert lab.rows("torchrun") == lab.rows("whole")
    assert lab.hashes("torchrun") == lab.hashes("whole")
