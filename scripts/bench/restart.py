"""Measure what a start of a training run costs: seconds until the end of the first step, by phase.

    python scripts/bench/restart.py            # 1.1B parameters from published files; 12 GB of memory
    python scripts/bench/restart.py --tiny     # a model of nano size, to check the script

Starts `earthgpt train` three times and kills it when its first step is saved: a new run without compiled programs; the
same run resumed with the programs of its compilation cache; and resumed without the cache. Files that an earlier start
read may still be in the memory of the operating system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from at_size.model import MODEL, NANO, RECIPE, RUN, XLA_FLAGS, write_parts

from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.synthetic import SyntheticSource

POLL_SECONDS = 0.2
STARTS = {
    "new run, empty cache": {},
    "resumed, cache": {},
    "resumed, no cache": {"JAX_ENABLE_COMPILATION_CACHE": "0"},
}  # fmt: skip


def start(command: list[str], workdir: Path, environment: dict[str, str], *, step: int) -> dict:
    """Train until a step is saved, kill the process, and return the line of throughput.jsonl about this start."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    variables |= {"XLA_FLAGS": XLA_FLAGS} | environment
    before = len(startups(workdir))
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=variables, stderr=errors)
        try:
            while not (workdir / "checkpoints" / str(step)).is_dir() or len(startups(workdir)) == before:
                if process.poll() is not None:
                    errors.seek(0)
                    raise SystemExit(f"the run ended with status {process.returncode}:\n{errors.read()[-2000:]}")
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    return startups(workdir)[-1]


def startups(workdir: Path) -> list[dict]:
    path = workdir / "throughput.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if '"startup"' in line and line.endswith("\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of nano size")
    parser.add_argument("--stage", default="align", help="stage of the recipe (default: align)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = NANO if args.tiny else MODEL
        parts = write_parts(folder / "parts", sizes=sizes)
        write_dataset({"train": SyntheticSource("train", 48)}, out=folder / "data", name="synthetic")
        words = [
            *RUN, *sizes, "init=", *(f"init_from.{part}={path}" for part, path in parts.items()),
            f"data.source={folder / 'data'}", "optim.steps=9", "checkpoint.every_steps=1", "checkpoint.keep=1",
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "earthgpt_jax", "train", "--config", f"{RECIPE}:{args.stage}",
            "--workdir", str(folder / "run"), *(f"--config.{word}" for word in words),
        ]  # fmt: skip
        header: list[str] = []
        for step, (name, environment) in enumerate(STARTS.items(), 1):
            line = start(command, folder / "run", environment, step=step)
            if not header:
                header = ["start", *line["startup"], "total", "programs from the cache"]
                print("| " + " | ".join(header) + " |\n|---" + "|--:" * (len(header) - 1) + "|")
            seconds = [*line["startup"].values(), sum(line["startup"].values())]
            cached = f"{line['cached_programs']} of {line['programs']}"
            print("| " + " | ".join([name, *(f"{value:.1f}" for value in seconds), cached]) + " |", flush=True)


if __name__ == "__main__":
    main()
