"""`python tests/slurm/injected.py -m sora.train …`: the command as it is, but for a pause or a death that a test asks for.

SORA_TEST_PAUSE: seconds to sleep in each step of a job's first turn. SORA_TEST_DIES: `RANK@STEP`, or `RANK@STEP always` to die
again after a restart. SORA_TEST_LOSES: `RANK@STEP` at which a rank's loader worker is killed, in a job's first turn.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sora import cli
from sora.data.loading.loader import FrameBatches
from sora.training.module import TrainingModule

PAUSE = float(os.environ.get("SORA_TEST_PAUSE", "0"))
who, _, how = os.environ.get("SORA_TEST_DIES", "").partition(" ")
plain = TrainingModule.training_step


def step(self, batch, number):
    restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    time.sleep(0 if restarted else PAUSE)
    if who == f"{self.global_rank}@{self.counters.step}" and (how or not restarted):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batch, number)


MAIN, LOSES, shared = os.getpid(), os.environ.get("SORA_TEST_LOSES", ""), FrameBatches.share


def share(self, step, *, ranks, rank):
    if os.getpid() != MAIN and f"{rank}@{step}" == LOSES and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return shared(self, step, ranks=ranks, rank=rank)


FrameBatches.share = share
TrainingModule.training_step = step
assert sys.argv[1] == "-m", sys.argv
raise SystemExit(cli.run(sys.argv[2].removeprefix("sora."), sys.argv[3:]))
