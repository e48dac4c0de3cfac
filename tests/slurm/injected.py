"""`python tests/slurm/injected.py -m sora.train …`: the command as it is, but for a pause or a death that a test asks for.

SORA_TEST_PAUSE: seconds to sleep in each step of a job's first turn. SORA_TEST_DIES: `RANK@STEP`, or `RANK@STEP always` to die
again after a restart.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sora import cli
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


TrainingModule.training_step = step
assert sys.argv[1] == "-m", sys.argv
raise SystemExit(cli.run(sys.argv[2].removeprefix("sora."), sys.argv[3:]))
