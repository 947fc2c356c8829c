#!/usr/bin/env bash
#SBATCH --job-name=mg3d --nodes=1 --gpus-per-node=8 --cpus-per-gpu=10 --time=24:00:00
#SBATCH --signal=USR1@300 --requeue --open-mode=append --output=%x-%j.log
# Pre-train on the nodes of a SLURM job, one process per GPU. Submit from the repository folder; options of sbatch come first:
#   sbatch --nodes=4 --time=12:00:00 run_scripts/pretrain_slurm.sh swin_b batch_size=256 log_dir=/shared/result
# Five minutes before the time limit, the job saves a checkpoint, requeues itself and resumes. After a node failure SLURM requeues it,
# and it resumes from the last validation. log_dir must be on a shared disk.
#   bash run_scripts/pretrain_slurm.sh --dry-run swin_b     print the commands of the job without running them
set -euo pipefail
if [ "${1:-}" = --task ]; then                             # started by srun, see below: --task FILE COMMAND ...
    # A preempted task (exit code 75, or 138 outside of training) creates FILE and exits with 0: after any other code srun kills the
    # tasks that are still saving.
    trap : USR1
    export RANK=$SLURM_PROCID
    code=0
    "${@:3}" || code=$?
    case $code in 75 | 138) : > "$2" ;; *) exit "$code" ;; esac
    exit 0
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"               # SLURM runs a copy of this file from another folder
root=$PWD
[ -f run_scripts/setup.sh ] || { echo "mg3d: submit from the repository folder, which contains run_scripts" >&2; exit 2; }
dry_run=
given=()
for argument in "$@"; do
    case "$argument" in
        --dry-run) dry_run=1 ;;
        --help | -h) given+=("$argument") ;;
        -*) echo "mg3d: unknown option $argument; options of sbatch come before the script" >&2; exit 2 ;;
        devices=* | num_nodes=*) echo "mg3d: $argument: set by the job; request nodes and GPUs from sbatch" >&2; exit 2 ;;
        *) given+=("$argument") ;;
    esac
done
set -- ${given[@]+"${given[@]}"}
if [ -n "$dry_run" ]; then
    if [ -z "${PYTHON:-}" ]; then PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python); fi
    if "$PYTHON" -c 'import sacred' 2>/dev/null; then "$PYTHON" main.py print_config with "$@" >/dev/null || exit 2; fi    # typos
    settings=("$@")
else
    source run_scripts/setup.sh                            # 1. install packages, once
    chosen=$("$PYTHON" tools/choose_preset.py "$@")        # 2. choose presets by data and GPUs
    source run_scripts/synthetic_data.sh                   # 3. generate synthetic data if chosen, once
    eval "settings=($chosen)"
fi
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-8}
job=${SLURM_JOB_ID:-JOB}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi    # this task, not the whole array
requeue=(scontrol requeue "$job")
preempted=$PWD/mg3d-$job.preempted
run=(srun --nodes="$nodes" --ntasks-per-node="$gpus" --kill-on-bad-exit=1
    bash run_scripts/pretrain_slurm.sh --task "$preempted"
    "$PYTHON" main.py with ${settings[@]+"${settings[@]}"} resume_from=auto devices="$gpus" num_nodes="$nodes")
if [ -n "$dry_run" ]; then
    echo "# in the job, tools/choose_preset.py adds presets for the data and GPUs found there"
    printf '%q ' "${run[@]}"
    echo
    echo "${requeue[*]}    # after the signal"
    exit 0
fi
rm -f "$preempted"
code=0
"${run[@]}" || code=$?                                     # 4. train
if [ -e "$preempted" ]; then
    rm -f "$preempted"
    "${requeue[@]}"
    exit 0
fi
exit "$code"
