#!/usr/bin/env bash
#SBATCH --job-name=earthgpt
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on the GPUs of one or more nodes; submit it from the folder of this checkout:
#
#   sbatch --nodes=4 --gpus-per-node=8 [OPTIONS of sbatch] scripts/launch/slurm.sh OPTIONS of `earthgpt train`...
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 scripts/launch/slurm.sh --config earthgpt_13b:instruct \
#       --workdir /shared/run --config.data.source=/shared/DATASETS
#
# Needs earthgpt on the PATH of the nodes (or its path in EARTHGPT=...) and a shared folder or a bucket. Starts one
# process per node, with all GPUs of the node; the processes find each other automatically. `bash scripts/launch/slurm.sh
# --dry-run ...` prints the command of a node. Five minutes before the time limit, the run saves and the job is requeued.
set -uo pipefail

here="${SLURM_SUBMIT_DIR:-.}/scripts/launch"
dry_run=
if [[ "${1:-}" == --dry-run ]]; then dry_run=1 && shift; fi

# Under srun, JAX assigns one GPU to each process unless its devices are listed.
gpus="${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}}"
if ((gpus > 0)); then export JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((gpus - 1)))"; fi

# If a node fails, JAX ends the processes of the others; killing them would hide the status with the reason.
command=(bash "$here/restart.sh" srun --kill-on-bad-exit=0 --wait=300 "${EARTHGPT:-earthgpt}" train "$@")
if [[ -n "$dry_run" ]]; then
  echo "JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-}"
  source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
  run "${command[@]}"
  exit
fi

terminated=
trap 'terminated=1; kill -TERM "$child"' TERM
"${command[@]}" &
child=$!
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # the signal ended the wait, not the run
  wait "$child"
  status=$?
done
if [[ -n "$terminated" ]]; then
  case "$status" in 0 | 2 | 70) ;; *) scontrol requeue "$SLURM_JOB_ID" ;; esac
fi
exit "$status"
