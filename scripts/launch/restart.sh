#!/usr/bin/env bash
# Runs a command and restarts it where that can help: bash scripts/launch/restart.sh COMMAND...
#
# Status 0 (finished), 2 (user error), 70 (a defect) and 130 (interrupted) end it. After any other status, for example 75 (preempted or
# hung) and 134 (JAX lost another host), training resumes from the newest checkpoint. SIGTERM is passed to the command,
# which is then not restarted, because the machine is about to be taken away. After MAX_RESTARTS (20) consecutive runs of
# less than an hour each, it gives up.
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
  case "$status" in 0 | 2 | 70 | 130) exit "$status" ;; esac
  if [[ -n "$terminated" ]]; then exit "$status"; fi
  if ((SECONDS - started > 3600)); then restarts=0; fi
  if ((++restarts > ${MAX_RESTARTS:-20})); then
    echo "restart.sh: status $status; giving up after ${MAX_RESTARTS:-20} restarts" >&2
    exit "$status"
  fi
  echo "restart.sh: status $status; restart $restarts of ${MAX_RESTARTS:-20} in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}" &
  wait $! # in the background, so that SIGTERM interrupts the pause
  if [[ -n "$terminated" ]]; then exit "$status"; fi
done
