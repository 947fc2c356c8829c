#!/usr/bin/env bash
#SBATCH --job-name=mg3d --nodes=1 --gpus-per-node=8 --cpus-per-gpu=10 --time=24:00:00
#SBATCH --signal=USR1@300 --requeue --open-mode=append --output=%x-%j.log
# Pre-train on the nodes of a SLURM job, one process per GPU. Options of sbatch come before the script and win over those at its head:
#   sbatch --nodes=4 --time=12:00:00 run_scripts/pretrain_slurm.sh swin_b batch_size=256 log_dir=/shared/result
# Five minutes before its time is over the job writes a checkpoint between two steps, queues itself again and goes on from there;
# after the end of a node SLURM queues it again, and it goes on from the last validation. log_dir must be on a shared disk.
#   bash run_scripts/pretrain_slurm.sh --dry-run swin_b     prints the commands of the job, and runs nothing
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"                             # SLURM runs a copy of this file from elsewhere
[ -f run_scripts/setup.sh ] || { echo "mg3d: submit this from the folder that holds run_scripts" >&2; exit 2; }
dry=
given=()
for word in "$@"; do
    case "$word" in
        --dry-run) dry=1 ;;
        --help | -h) given+=("$word") ;;
        -*) echo "mg3d: unknown option $word; options of sbatch come before the script" >&2; exit 2 ;;
        devices=* | num_nodes=*) echo "mg3d: $word: devices and num_nodes come from the job; ask sbatch for other nodes or GPUs" >&2; exit 2 ;;
        *) given+=("$word") ;;
    esac
done
set -- ${given[@]+"${given[@]}"}
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-8}
if [ -n "$dry" ]; then
    if [ -z "${PYTHON:-}" ]; then PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python); fi
    if "$PYTHON" -c 'import sacred' 2>/dev/null; then "$PYTHON" main.py print_config with "$@" >/dev/null || exit 2; fi    # typos
    words=
    if [ $# -gt 0 ]; then printf -v words ' %q' "$@"; fi
else
    source run_scripts/setup.sh                                          # 1. packages
    words=$("$PYTHON" tools/choose_preset.py "$@")                       # 2. what to run
    source run_scripts/synthetic_data.sh                                 # 3. data: made once, then a no-op
fi
again="scontrol requeue ${SLURM_JOB_ID:-JOB}"
told="$PWD/mg3d-${SLURM_JOB_ID:-JOB}.told"                              # is there when the signal has stopped the run
# A task that the signal stopped (75), also before or after training (138), ends with 0: any other code would let srun kill the tasks
# that are still ending, and give theirs.
printf -v train '%q' "\"$PYTHON\" main.py with ${words# } resume_from=auto devices=$gpus num_nodes=$nodes || code=\$?
case \${code:-0} in 75 | 138) : > $(printf %q "$told") ;; *) exit \${code:-0} ;; esac"
run="srun --nodes=$nodes --ntasks-per-node=$gpus --kill-on-bad-exit=1 bash -c 'trap : USR1; export RANK=\$SLURM_PROCID; '$train"
if [ -n "$dry" ]; then
    echo "# tools/choose_preset.py adds words to these in the job, by the data and GPUs that are found there"
    printf '%s\n' "$run" "$again    # when the signal has stopped the run"
    exit 0
fi
rm -f "$told"
code=0
eval "$run" || code=$?                                                   # 4. train
if [ -e "$told" ]; then
    rm -f "$told"
    $again
    exit 0
fi
exit "$code"
