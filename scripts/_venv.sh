# Sourced by the other scripts: creates or reuses .venv/ in this checkout and keeps its packages up to date.
# Defines ROOT (the checkout), VENV (its environment) and `install EXTRAS [PACKAGE...]`.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

# Allocate large arrays on huge pages. XLA's CPU programs allocate and free big buffers in every step, and the page
# faults of 4-KiB pages would take a third of the time. The variable has an effect only with glibc on Linux.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

say() { printf '%s\n' "$*" >&2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Print the first Python that is 3.11 or newer: $PYTHON if set, else from PATH.
find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n "${PYTHON:-}" ]]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  say "error: expected Python 3.11 or newer, found $("${candidates[0]}" --version 2>&1 || true)." \
    "Install one, or give its path: PYTHON=/path/to/python3.12 bash $0"
  return 2
}

make_venv() {
  is_new_enough "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
  local python
  python="$(find_python)"
  say "Creating $VENV with $("$python" --version) ..."
  "$python" -m venv --clear "$VENV" || {
    say "error: $python cannot create virtual environments; install its venv module (Debian: python3-venv)."
    return 2
  }
}

# install EXTRAS [PACKAGE...]: install the packages in this order, then this checkout with EXTRAS ("" or "[test]").
# A stamp file records what the last complete installation was made from, so that a rerun starts at once.
install() {
  local extras="$1" stamp expected
  shift
  make_venv
  stamp="$VENV/.installed$extras"
  expected="$("$VENV/bin/python" -c '
import hashlib, sys
print(sys.version, hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$ROOT/setup.py")"
  if [[ -x "$VENV/bin/earthgpt" && -f "$stamp" && "$(<"$stamp")" == "$expected" ]]; then
    return
  fi
  say "Installing into $VENV (once; takes a few minutes) ..."
  local package
  for package in "$@"; do
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
  done
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$ROOT$extras"
  printf '%s\n' "$expected" >"$stamp"
  printf '%s\n' "$expected" >"$VENV/.installed" # with any extras, the package itself is installed too
}
