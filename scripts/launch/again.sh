#!/usr/bin/env bash
# Runs a command, and runs it again where that can help: bash scripts/launch/again.sh COMMAND...
#
# It cannot behind status 0 (finished), 2 (something to mend) and 130 (interrupted). Behind 75 (a step hung), 134 (JAX
# lost another host) and whatever else ends a process, training goes on from its newest checkpoint. SIGTERM goes to the
# command and is its last: the machine is about to go. MAX_RESTARTS (20) in a row of less than an hour each are enough.
set -uo pipefail

restarts=0 terminated=
trap 'terminated=1; kill -TERM "${child:-}" 2>/dev/null' TERM
while true; do
  started=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # the signal ended the wait, not the command
    wait "$child"
    status=$?
  done
  case "$status" in 0 | 2 | 130) exit "$status" ;; esac
  if [[ -n "$terminated" ]]; then exit "$status"; fi
  if ((SECONDS - started > 3600)); then restarts=0; fi
  if ((++restarts > ${MAX_RESTARTS:-20})); then
    echo "again.sh: status $status; ${MAX_RESTARTS:-20} restarts were not enough" >&2
    exit "$status"
  fi
  echo "again.sh: status $status; restart $restarts of ${MAX_RESTARTS:-20} in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}" &
  wait $! # in the background, so that SIGTERM is not kept waiting
  if [[ -n "$terminated" ]]; then exit "$status"; fi
done
