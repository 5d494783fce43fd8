#!/usr/bin/env bash
# Trains on all hosts of a TPU VM slice with the last commit of this checkout:
#
#   bash scripts/launch/tpu_vm.sh [--dry-run] TPU ZONE OPTIONS of `earthgpt train`...
#   bash scripts/launch/tpu_vm.sh my-v5e-16 us-west4-a --config earthgpt_13b:instruct --workdir gs://my-bucket/run \
#       --config.data.source=gs://my-bucket/DATASETS
#
# Needs gcloud on this machine, and on the hosts Python 3.11 or newer (or its path in PYTHON=...) and a bucket that their
# service account can read and write, or a shared folder. The hosts find each other automatically. Training continues after this script ends, and restarts if a process dies.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

dry_run=
if [[ "${1:-}" == --dry-run ]]; then dry_run=1 && shift; fi
if (($# < 3)); then usage && exit 2; fi
tpu="$1" zone="$2" && shift 2
ssh=(gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command)
package="$(mktemp -d)/earthgpt.tar.gz"

# 1. Copy the code to every host.
run git -C "$(dirname "$0")/../.." archive --format=tar.gz --prefix=earthgpt/ --output="$package" HEAD
run gcloud compute tpus tpu-vm scp "$package" "$tpu:" --zone="$zone" --worker=all

# 2. Install its environment.
run "${ssh[@]}" "tar xzf earthgpt.tar.gz && export PYTHON=${PYTHON:-} &&
  source earthgpt/scripts/_venv.sh && install \"[tpu,gcs]\""

# 3. Start the run on every host, detached from this connection.
command="earthgpt/.venv/bin/earthgpt train$(printf ' %q' "$@")"
run "${ssh[@]}" "nohup setsid bash earthgpt/scripts/launch/restart.sh $command >train.log 2>&1 </dev/null & echo started on \$(hostname)"

cat <<EOF
look:  ${ssh[*]} 'tail -n 3 train.log'
stop:  ${ssh[*]} 'pkill -TERM -f launch/restart.sh'
EOF
