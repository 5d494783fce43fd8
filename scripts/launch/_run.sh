# Sourced by the launchers. `run COMMAND...` runs a command or, if $dry_run is set, prints it in a form that can be pasted
# into a shell. `usage` prints the comment at the top of the launcher.

run() {
  if [[ -z "$dry_run" ]]; then
    "$@"
    return
  fi
  local word
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then printf '%s ' "$word"; else printf '%s ' "${word@Q}"; fi
  done
  echo
}

usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2; }
