"""Benchmark the input pipeline against PyTorch's DataLoader and Hugging Face `datasets`, in images per second.

    python scripts/bench/input.py DATASETS [--batches 40] [--repeats 3]
    python scripts/bench/input.py DATASETS --profile

DATASETS is a folder that `earthgpt data build` wrote. All loaders produce the same samples, in the order of the 13B
recipe's packing schedule, from the same files: read, tokenize, decode, pad to a square, resize to 512 px, batch. First
the images and token ids of the first batches are compared. Then the loaders run one after the other on two cores, each
in its own process, `--repeats` times. Timing starts after the first 128 images. Needs the packages `torch` and
`datasets`. Prints Markdown tables; with `--profile`, of where the time of one image goes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import loaders
import numpy as np
import psutil
import stages

WORKERS = (0, 1, 2)
OURS = "EarthGPT-JAX"
PAIRS = "torch DataLoader, a sample for each question"
CORES = 2
WARM = 128  # images before timing starts: processes may have prefetched this many during start-up


def compare(work: Path, *, batches: int) -> int:
    """Compare the other loaders' images and token ids with ours, and return the number of images compared.

    Raises:
        AssertionError: A pixel or an id differs.
    """
    reference = list(itertools.islice(loaders.LOADERS[OURS](work, workers=0), batches))
    images = np.concatenate([images for loaded in reference for images in loaded.images])
    texts = [ids for loaded in reference for ids in loaded.ids()]
    shared = len(_prefix(work))
    for name in loaders.LOADERS:
        if name in (OURS, PAIRS):
            continue
        compared, ids = 0, list[list[int]]()
        for loaded in loaders.LOADERS[name](work, workers=0):
            if compared + len(loaded) > len(images):
                break
            np.testing.assert_array_equal(loaded.images[0], images[compared : compared + len(loaded)], err_msg=name)
            compared, ids = compared + len(loaded), ids + loaded.ids()
        assert [turn[shared:] for turn in ids] == texts[: len(ids)], name
        assert compared > len(images) - loaders.IMAGES_PER_BATCH, name
    return compared


def _prefix(work: Path) -> Sequence[int]:
    from earthgpt_jax.input.prompts.chat_template import chat_template

    prompts = loaders.packed_sequences(json.loads((work / "about.json").read_text())["datasets"]).build.prompt_config
    return prompts.tokenizer.encode(chat_template(prompts.chat_template).prefix)


def run(name: str, *, work: Path, workers: int) -> Mapping[str, float]:
    """Return images, questions, seconds and CPU seconds after the first `WARM` images."""
    loaded = iter(loaders.LOADERS[name](work, workers=workers))
    warm = 0
    while warm < WARM:
        warm += len(next(loaded))
    images, questions, began, cpu = 0, 0, time.perf_counter(), _cpu()
    for batch in loaded:
        images += len(batch)
        questions += batch.questions
        seconds, used = time.perf_counter() - began, _cpu() - cpu  # read before the workers exit
    return {"images": images, "questions": questions, "seconds": seconds, "cpu": used}


def _cpu() -> float:
    """Return the CPU seconds of this process and its children so far."""
    current = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (current, *current.children(recursive=True)))


def run_in_subprocess(name: str, *, work: Path, workers: int) -> Mapping[str, float]:
    command = [sys.executable, __file__, "unused", "--work", str(work), "--run", name, "--workers", str(workers)]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(completed.stdout.splitlines()[-1])


def table(results: Mapping[tuple[str, int], Sequence[Mapping[str, float]]], unit: str) -> str:
    """Return a table of speeds, and of CPU time, which depends less on other load."""
    speeds = {key: [result[unit] / result["seconds"] for result in runs] for key, runs in results.items()}
    costs = {
        key: statistics.median(1e3 * result["cpu"] / result[unit] for result in runs) for key, runs in results.items()
    }
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    others = [key for key in results if key[0] != OURS]
    fastest, cheapest = max(medians[key] for key in others), min(costs[key] for key in others)
    lines = [
        f"| | workers | {unit}/s, median | min to max | relative to the fastest other "
        f"| CPU ms per {unit.removesuffix('s')} | relative to the cheapest other |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for key, values in speeds.items():
        lines.append(
            f"| {key[0]} | {key[1]} | {medians[key]:.0f} | {min(values):.0f} to {max(values):.0f} "
            f"| {medians[key] / fastest:.2f} x | {costs[key]:.2f} | {cheapest / costs[key]:.2f} x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--batches", type=int, default=40, help="batches of four sequences (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each loader (default: 3)")
    parser.add_argument("--profile", action="store_true", help="print where the time of one image goes")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if args.profile:
        print(stages.profile(args.datasets))
        return
    if args.run:
        print(json.dumps(run(args.run, work=args.work, workers=args.workers)))
        return

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        loaders.prepare(args.datasets, work, batches=args.batches)
        print(f"{compare(work, batches=6)} images and their texts are equal for all loaders\n")
        runs: dict[tuple[str, int], list] = {}
        for _ in range(args.repeats):
            for name, workers in itertools.product(loaders.LOADERS, WORKERS):
                runs.setdefault((name, workers), []).append(run_in_subprocess(name, work=work, workers=workers))
        first = next(iter(runs.values()))[0]
        print(f"{first['images']} images and {first['questions']} questions per run\n")
        print(table({key: value for key, value in runs.items() if key[0] != PAIRS}, "images"), "\n")
        print(table({key: value for key, value in runs.items() if key[0] in (OURS, PAIRS)}, "questions"))


if __name__ == "__main__":
    main()
