# What the batch scripts share: `job VERB WORDS…` runs `sora VERB` on every task of the allocation, and decides what comes after.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
python=("${SORA_PYTHON:-.venv/bin/python}") # a file, in whose path there may be spaces, or words: "apptainer exec --nv sora.sif python"
[[ -f ${python[0]} ]] || mapfile -t python < <(xargs -n 1 printf '%s\n' <<<"${python[0]}")

# one rendezvous for all tasks: the first node, and a port of this job's own
: "${MASTER_ADDR:=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}" "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 12000))}"
export MASTER_ADDR MASTER_PORT

job() {
    local verb=$1 output="" word code
    shift
    if [[ $verb == train ]]; then
        for word in "$@"; do [[ $word == output=* ]] && output=${word#output=}; done
        [[ $output == "~/"* ]] && output=$HOME/${output:2} # as sora takes it
        [[ -n $output ]] || { echo "name the run's folder, which a requeued job goes on with: output=…" >&2; exit 2; }
        set -- "$@" resume=auto
    fi
    # Slurm signals the tasks. This shell outlives a signal of its own, and looks at what came of it when they have ended.
    trap : USR1 USR2 TERM
    # Ranks leave together, so one that leaves alone has died: the others follow within 10 s. Not --kill-on-bad-exit: it would kill the
    # rank that is a moment later when all end with the code that asks for another turn.
    srun --kill-on-bad-exit=0 --wait=10 "${python[@]}" -m "sora.$verb" "$@"
    code=$?
    [[ $verb == train ]] && ended "$code" "$output"
    exit "$code"
}

ended() { # training ended with code $1 in folder $2; 128 + N is signal N
    case $1 in
        138 | 140) moving "$2" && again "SIGUSR1 or SIGUSR2 asked, before the time limit" ;;
        143) # SIGTERM: Slurm forgets a preempted job that ends within its grace time; a cancelled one shall stay away
            [[ $(scontrol show job "$SLURM_JOB_ID") =~ JobState=RUNNING.*PreemptTime=[0-9] ]] && again "saved, as this job is preempted" ;;
        134 | 135 | 136 | 137 | 139) # a rank crashed or was killed
            [[ -d $2 ]] && moving "$2" && again "a rank ended with $1" ;;
    esac
}

moving() { # whether the run in folder $1 gets on: not if three turns ended with nothing saved in between
    local newest turns=$((${SLURM_RESTART_COUNT:-0} + 1))
    newest=$(find "$1/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1)
    if [[ -d $1 ]]; then
        echo "${newest:-none}" >>"$1/turns"
        turns=$(grep -cxF "${newest:-none}" "$1/turns")
    fi
    [[ $turns -lt 3 ]] || { echo "three turns ended with nothing saved in between, so this job stays away: ${newest:-no checkpoint}" >&2; return 1; }
}

again() {
    echo "$1; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
