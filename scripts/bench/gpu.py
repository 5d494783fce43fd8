"""Check and measure EarthGPT on one NVIDIA GPU; `scripts/bench/gpu.sh` runs this file.

examples:
  bash scripts/bench/gpu.sh --out gpu_results
  bash scripts/bench/gpu.sh --tiny --out /tmp/gpu
  bash scripts/bench/gpu.sh --parts attention train_13b --wheels wheels/

Each part runs in a process of its own, so that a failure or a lack of memory ends only that part, and so that the peak
of memory is that of the part:

  attention       cuDNN's attention compared with XLA's: outputs and gradients; rates of the device
  train_13b       13B `instruct`, frozen bfloat16: tokens/s, MFU, memory
  decode_13b      13B answers: time per token next to the memory roofline, 1 and 20 questions per image
  attention_time  cuDNN's attention compared with XLA's: time
  train_1b        1.1B `align` (the LLM of TinyLlama)
  train_7b        7B `instruct`, frozen bfloat16
  decode_7b       7B answers
  train_13b_int8  13B `instruct`, frozen int8

Results are printed as they come and appended to results.jsonl; after every part, gpu.md and gpu.json in the output
folder are rewritten. The exit status is 1 if a part failed or was not run, 2 if packages or the GPU are missing.

Weights are random and created on the device in their final type. Needs jax 0.10 or 0.11 with CUDA, flax, optax,
jaxtyping, ml_dtypes, numpy and scipy; no dataset, tokenizer or recipe is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from gpu_checks.results import PartStatus, Recorder, read, write_table  # imports no package that may be missing

NEEDED = ("jax", "jaxlib", "flax", "optax", "jaxtyping", "ml_dtypes", "numpy", "scipy")
PARTS = (
    "attention", "train_13b", "decode_13b", "attention_time", "train_1b", "train_7b", "decode_7b", "train_13b_int8"
)  # fmt: skip
_TAIL = 12  # lines of a failed part's output that are searched for the reason


def main() -> int:
    """Run the parts and return the exit status."""
    args = _parse()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} lacks {', '.join(missing)}; install them, or put their wheels and those of what "
            "they need into a folder and pass --wheels FOLDER to scripts/bench/gpu.sh",
            file=sys.stderr,
        )
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        run_part(args.part, out=args.out, tiny=args.tiny)
        return 0
    return run_all(args)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.environ.get("OUT", "gpu_results")
    parser.add_argument("--out", type=Path, default=Path(out), help="output folder (default: $OUT, else gpu_results)")
    parser.add_argument("--tiny", action="store_true", help="nano sizes, on a CPU: the same code in about a minute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time for all parts; what is left then is not run (default: 8)"
    )
    parser.add_argument(
        "--part-minutes", type=float, default=2.5, help="time after which a single part is ended (default: 2.5)"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args()


def run_part(part: str, *, out: Path, tiny: bool) -> None:
    """Run one part in this process.

    Raises:
        Exception: the part failed.
    """
    from gpu_checks import attention, decode, train
    from gpu_checks.cases import decode_case, train_case

    recorder = Recorder(part=part, path=out / "results.jsonl")
    size = {"1b": "1.1B", "7b": "7B", "13b": "13B"}.get(part.split("_")[-1].replace("int8", "13b"), "")
    if part == "attention":
        attention.run(recorder, tiny=tiny)
    elif part == "attention_time":
        attention.run_time(recorder, tiny=tiny)
    elif part.startswith("decode"):
        decode.run(decode_case(size, tiny=tiny), recorder)
    else:
        frozen = "int8" if part.endswith("int8") else "bfloat16"
        stage = "align" if size == "1.1B" else "instruct"
        train.run(train_case(size, stage, frozen_dtype=frozen, tiny=tiny), recorder)


def run_all(args: argparse.Namespace) -> int:
    """Run each part in a process of its own, and return the exit status."""
    results = args.out / "results.jsonl"
    results.unlink(missing_ok=True)
    environment = _environment(tiny=args.tiny)
    try:
        about = _about(environment)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"error: jax finds no device: {error}", file=sys.stderr)
        return 2
    if about["platform"] != "gpu" and not args.tiny:
        print(f"error: expected a GPU, got {about['platform']}; add --tiny to run on a CPU", file=sys.stderr)
        return 2
    for name, value in about.items():
        print(f"{name}: {value}", flush=True)
    statuses = {part: PartStatus(part=part, status="not run") for part in args.parts}
    end = time.monotonic() + 60 * args.minutes
    for part in args.parts:
        left = end - time.monotonic()
        if left > 0:
            statuses[part] = _run_process(
                part, args, environment, limit=min(left, 60 * args.part_minutes)
            )  # fmt: skip
        else:
            statuses[part] = PartStatus(part=part, status="not run", message=f"no time left of {args.minutes:g} min")
        ended = statuses[part]
        print(f"[{part}] {ended.status} after {ended.seconds:.0f} s {ended.message}".rstrip(), flush=True)
        write_table(args.out, about=about, results=read(results), parts=statuses.values())
    print(f"table: {args.out / 'gpu.md'}", flush=True)
    return int(any(status.status != "ok" for status in statuses.values()))


def _environment(*, tiny: bool) -> dict[str, str]:
    """Return the environment of the parts."""
    environment = dict(os.environ)
    if tiny:
        environment["JAX_PLATFORMS"] = "cpu"
    # A part may use nearly all memory of the GPU: nothing else runs on it.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    # Parts of the same model share programs, and a second run compiles nothing.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "earthgpt_gpu_jax_cache"))
    return environment


def _about(environment: dict[str, str]) -> dict[str, str]:
    """Return the device and the versions, read in a process that ends before the first part starts.

    Raises:
        RuntimeError: jax finds no device.
    """
    source = (
        "import flax, jax, jaxlib, numpy, optax; d = jax.devices()[0]; s = d.memory_stats() or {}\n"
        "print('platform', d.platform, sep='\\t')\n"
        "print('device', d.device_kind, sep='\\t')\n"
        "m = s.get('bytes_limit')\n"
        "print('memory', f'{m / 2**30:.1f} GiB usable' if m else 'unknown', sep='\\t')\n"
        "for m in (jax, jaxlib, flax, optax, numpy): print(m.__name__, m.__version__, sep='\\t')"
    )
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)


def _run_process(part: str, args: argparse.Namespace, environment: dict[str, str], *, limit: float) -> PartStatus:
    """Run one part as a process whose output is passed on line by line, and return how it ended."""
    command = [sys.executable, "-u", str(Path(__file__).resolve()), "--part", part, "--out", str(args.out)]
    command += ["--tiny"] if args.tiny else []
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    ended_by_limit = threading.Event()

    def end() -> None:
        ended_by_limit.set()
        process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    lines: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines = [*lines[-_TAIL:], line.strip()]
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    status = PartStatus(part=part, status="ok", seconds=time.monotonic() - started)
    if ended_by_limit.is_set():
        return dataclasses.replace(status, status="failed", message=f"ended after its limit of {limit:.0f} s")
    if code:
        return dataclasses.replace(status, status="failed", message=_reason(lines, code))
    return status


def _reason(lines: list[str], code: int) -> str:
    """Return the last line of a failed part that names an error."""
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or lines or [f"no output, exit status {code}"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
