#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, by XPK:
#
#   bash scripts/launch/gke_xpk.sh [--dry-run] CLUSTER NAME TPU_TYPE SLICES IMAGE OPTIONS of `earthgpt train`...
#   bash scripts/launch/gke_xpk.sh my-cluster run-1 v5litepod-16 1 REGISTRY/earthgpt:1 \
#       --config earthgpt_13b:instruct --workdir /mnt/shared/run --config.data.source=/mnt/shared/DATASETS
#
# Needs xpk here, with the cluster's project and zone as its defaults (`gcloud config set`), an image in which
# earthgpt-jax[tpu] is installed, and storage attached to the workload that all hosts see (`xpk storage attach`).
# The hosts find each other by themselves. XPK restarts all of them where one ends with another status than 0 and 2.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

dry_run=
if [[ "${1:-}" == --dry-run ]]; then dry_run=1 && shift; fi
if (($# < 6)); then usage && exit 2; fi
cluster="$1" name="$2" type="$3" slices="$4" image="$5" && shift 5

# XPK restarts behind 42 and 127-255 by itself: killed, aborted, terminated. Ours besides: 1 (another host was lost
# within a step), 75 (a step hung). 120 seconds for the checkpoint that SIGTERM brings about.
run xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" --num-slices="$slices" \
  --docker-image="$image" --max-restarts="${MAX_RESTARTS:-20}" --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 --command="earthgpt train$(printf ' %q' "$@")"
