#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster with XPK:
#
#   bash scripts/launch/gke_xpk.sh [--dry-run] CLUSTER NAME TPU_TYPE SLICES IMAGE OPTIONS of `earthgpt train`...
#   bash scripts/launch/gke_xpk.sh my-cluster run-1 v5litepod-16 1 REGISTRY/earthgpt:1 \
#       --config earthgpt_13b:instruct --workdir gs://my-bucket/run --config.data.source=gs://my-bucket/DATASETS
#
# Needs xpk on this machine, with the project and zone of the cluster as defaults (`gcloud config set`), an image in a
# registry (built from scripts/docker/tpu.Dockerfile), and a bucket that the cluster's service account can read and write,
# or shared storage (`xpk storage attach`). The hosts find each other automatically. If a host is lost, preempted or hangs, XPK restarts all of them.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

dry_run=
if [[ "${1:-}" == --dry-run ]]; then dry_run=1 && shift; fi
if (($# < 6)); then usage && exit 2; fi
cluster="$1" name="$2" type="$3" slices="$4" image="$5" && shift 5

# XPK restarts after 42 and 127-255 (killed, aborted, terminated) anyway. In addition: 1 (another host was lost during a
# step) and 75 (preempted or hung). After SIGTERM, the run has 120 seconds to save a checkpoint.
run xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" --num-slices="$slices" \
  --docker-image="$image" --max-restarts="${MAX_RESTARTS:-20}" --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 --command="earthgpt train$(printf ' %q' "$@")"
