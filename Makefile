# Everything from a bare clone: each target installs what it needs first. Needs only Python 3.11+, pip, git and make.
SHELL := /bin/bash
# the first that really runs and can make environments (a version manager's shim may stand for nothing); 3.11 is what CI runs
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip's own settings of the machine (an index, a proxy) hold; only the choices that matter here are made
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast test-long test-attacks test-slurm lint house bench bench-% gpu-check gpu-wheels ablate-dit soak soak-long lock clean

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):[^#]*## /  make \1\t/' | expand -t 22

setup: $(STAMP)  ## make .venv and install sora in it, once

$(STAMP): pyproject.toml constraints.txt requirements-nodeps.txt
	@test -n "$(PYTHON)" || { echo "sora needs Python 3.11 or newer with venv; name it: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[dev,tensorboard]'
	$(PIP) install --quiet --progress-bar off --no-deps -r requirements-nodeps.txt
	@touch $@

quickstart: setup  ## nothing -> data -> VAE -> DiT -> samples -> scores -> outputs/quickstart/report.html
	$(BIN)/sora quickstart

# A module's tests stay in one process, where they share what they made; the fast ones come first, so that a mistake shows early.
# Byte code is kept whatever the environment says: else each process, and each command that a test starts, compiles all modules anew.
# A worker that dies ends the run with a failure: with another in its place pytest-xdist waits for ever for the tests of the dead one.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --max-worker-restart=0

test: setup  ## the whole test suite, fast ones first
	$(PYTEST) -m 'not slow and not slurm and not long and not attacks'
	$(PYTEST) -m 'slow and not slurm and not long and not attacks'

test-fast: setup  ## the tests that take no long runs
	$(PYTEST) -m 'not slow and not slurm and not long and not attacks'

test-long: setup  ## laws over several processes and whole commands that take long: ranks that die, prices of large runs, compiled meshes
	$(PYTEST) -m 'long and not attacks'

test-attacks: setup  ## hostile runs, datasets, files and words through every door, and mutants of every form; minutes
	$(PYTEST) -m attacks tests/attacks

# Debian's packages, where they may be installed; the tests start daemons of their own
test-slurm: setup  ## training under a real Slurm: two nodes, time limit, preemption, killed ranks, arrays
	@command -v slurmctld munged >/dev/null || PATH=$$PATH:/usr/sbin command -v slurmctld munged >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; } || true
	@if why=$$($(BIN)/python -m tests.slurm.cluster); then $(BIN)/python -m pytest -m slurm tests/slurm; \
	else echo "############ the Slurm tests DID NOT RUN: $$why ############"; fi

soak: setup  ## a run killed fifteen times at random moments, on one, two or four ranks, compared with an undisturbed one bit by bit; minutes
	$(BIN)/python -m tests.training.soak $(ARGS)

soak-long: setup  ## 2,000 steps with flat memory, open files, threads, children and /dev/shm; writes experiments/benchmarks/soak.json
	$(BIN)/python -m tests.training.soak_long $(ARGS)

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright

house: setup  ## how far each verb reaches, and what is left of each rule's exceptions; ARGS=write where there are fewer
	$(BIN)/python -m tests.rules $(ARGS)

bench: setup  ## every benchmark; each writes experiments/benchmarks/NAME.json
	@set -e; for script in experiments/benchmarks/*.py; do test $$script = experiments/benchmarks/gpu.py || { \
		echo "== $$script"; $(BIN)/python "$$script"; }; done

lock: setup  ## requirements.lock, every package with the hash of its file, as pip would install them today
	$(BIN)/python tools/lock.py

# The Python that has a torch with CUDA; nothing is installed. GPU_PYTHON_VERSION is that of the machine for which wheels are fetched.
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
gpu-check:  ## attention, steps, training, sampling on a GPU in minutes, without an installation; ARGS="minutes=8 only=…"
	$(GPU_PYTHON) experiments/benchmarks/gpu.py $(ARGS)

gpu-wheels: setup  ## what gpu-check needs besides torch, in outputs/gpu-wheels, to be carried to a machine without a network
	bash experiments/gpu_wheels.sh $(BIN)/python outputs/gpu-wheels $(GPU_PYTHON_VERSION)

bench-%: setup  ## one benchmark, such as bench-world; ARGS="…" says what its script takes
	$(BIN)/python experiments/benchmarks/$*.py $(ARGS)

ablate-dit: setup  ## block kinds, attention, conditioning and positions at equal compute; hours on a CPU, goes on where it stopped
	$(BIN)/python -m experiments.dit_ablations $(ARGS)

clean:  ## remove caches and built packages (keeps .venv and outputs)
	rm -rf build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
