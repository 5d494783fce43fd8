#!/usr/bin/env bash
# Checks and measures EarthGPT on one NVIDIA GPU, in at most eight minutes, and writes a table (gpu.md, gpu.json):
#
#   bash scripts/bench/gpu.sh [--wheels DIR] [--out DIR] [--tiny] [--parts PART...]   (--help: all options)
#
# Needs a Python (3.11 or newer; $PYTHON, default python3) with jax 0.10 or 0.11 for CUDA, flax, optax, jaxtyping,
# ml_dtypes, numpy and scipy. The package itself need not be installed. Nothing is downloaded: what is missing can be
# installed from wheels in a folder, for this run only. On a machine with a network, fetch them with
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d DIR flax optax jaxtyping ...
#
# The output folder is --out, else $OUT, else gpu_results. --tiny runs nano sizes on a CPU.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python3}"
wheels= arguments=()
while (($#)); do
  case "$1" in
    --wheels) wheels="${2:?--wheels: expected a folder of wheels}" && shift 2 ;;
    --wheels=*) wheels="${1#--wheels=}" && shift ;;
    *) arguments+=("$1") && shift ;;
  esac
done

path="$root"
if [[ -n "$wheels" ]]; then
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    echo "error: --wheels $wheels: expected a folder with .whl files" >&2
    exit 2
  fi
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$wheels"/*.whl
  path="$site:$path"
fi
PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" "$python" "$root/scripts/bench/gpu.py" ${arguments[@]+"${arguments[@]}"}
