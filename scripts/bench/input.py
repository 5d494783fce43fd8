"""Images a second that reach the training loop: ours beside a PyTorch DataLoader and Hugging Face `datasets`.

    python scripts/bench/input.py DATASETS [--batches 40] [--repeats 3]
    python scripts/bench/input.py DATASETS --profile

DATASETS is a folder that `earthgpt data build` wrote. All contestants make the same samples (rows of the 13B recipe's
plan, in its order) of the same bytes: read, tokenise, decode, pad to square, resize to 512 px, batch. First every image
and every token id of the first batches is compared, then each contestant runs in processes of its own, on two cores,
one after the other, as often as `--repeats` says. The clock starts behind the first 128 images. Needs the packages
`torch` and `datasets`. Prints Markdown tables; with `--profile`, of where the time of one image goes.
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
PAIRS = "torch DataLoader, a sample for each question"
CORES = 2
WARM = 128  # images before the clock starts: as many as processes may have made while others were starting


def compare(work: Path, *, batches: int) -> int:
    """Images that were compared.

    Raises:
        AssertionError: a contestant makes another pixel or another id than ours.
    """
    reference = list(itertools.islice(loaders.CONTESTANTS["ours"](work, workers=0), batches))
    images = np.concatenate([part for made in reference for part in made.images])
    texts = [ids for made in reference for ids in made.ids()]
    shared = len(_prefix(work))
    for name in loaders.CONTESTANTS:
        if name in ("ours", PAIRS):
            continue
        seen, ids = 0, list[list[int]]()
        for made in loaders.CONTESTANTS[name](work, workers=0):
            if seen + len(made) > len(images):
                break
            np.testing.assert_array_equal(made.images[0], images[seen : seen + len(made)], err_msg=name)
            seen, ids = seen + len(made), ids + made.ids()
        assert [each[shared:] for each in ids] == texts[: len(ids)], name
        assert seen > len(images) - loaders.IMAGES_PER_BATCH, name
    return seen


def _prefix(work: Path) -> Sequence[int]:
    from earthgpt_jax.input.prompts.chat_template import chat_template

    found = loaders.rows(json.loads((work / "about.json").read_text())["datasets"]).build.prompt_config
    return found.tokenizer.encode(chat_template(found.chat_template).prefix)


def run(name: str, *, work: Path, workers: int) -> Mapping[str, float]:
    """Images, questions, seconds and CPU seconds behind the first `WARM` images."""
    made = iter(loaders.CONTESTANTS[name](work, workers=workers))
    warm = 0
    while warm < WARM:
        warm += len(next(made))
    images, questions, began, cpu = 0, 0, time.perf_counter(), _cpu()
    for batch in made:
        images += len(batch)
        questions += batch.questions
        seconds, used = time.perf_counter() - began, _cpu() - cpu  # while the workers are there, without their end
    return {"images": images, "questions": questions, "seconds": seconds, "cpu": used}


def _cpu() -> float:
    """CPU seconds of this process and of its children so far."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def in_its_own_process(name: str, *, work: Path, workers: int) -> Mapping[str, float]:
    words = [sys.executable, __file__, "unused", "--work", str(work), "--run", name, "--workers", str(workers)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Mapping[tuple[str, int], Sequence[Mapping[str, float]]], unit: str) -> str:
    """Speeds of all runs, and CPU time, which other work on the machine changes less."""
    speeds = {key: [each[unit] / each["seconds"] for each in runs] for key, runs in results.items()}
    costs = {key: statistics.median(1e3 * each["cpu"] / each[unit] for each in runs) for key, runs in results.items()}
    middle = {key: statistics.median(values) for key, values in speeds.items()}
    others = [key for key in results if key[0] != "ours"]
    fastest, cheapest = max(middle[key] for key in others), min(costs[key] for key in others)
    lines = [
        f"| | workers | {unit}/s, median | lowest to highest | to the fastest other "
        "| CPU ms each | to the cheapest other |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for key, values in speeds.items():
        lines.append(
            f"| {key[0]} | {key[1]} | {middle[key]:.0f} | {min(values):.0f} to {max(values):.0f} "
            f"| {middle[key] / fastest:.2f} x | {costs[key]:.2f} | {cheapest / costs[key]:.2f} x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--batches", type=int, default=40, help="of four rows (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contestant (default: 3)")
    parser.add_argument("--profile", action="store_true", help="where the time of one image goes")
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
        print(f"{compare(work, batches=6)} images and their texts are equal for all contestants\n")
        runs: dict[tuple[str, int], list] = {}
        for _ in range(args.repeats):
            for name, workers in itertools.product(loaders.CONTESTANTS, WORKERS):
                runs.setdefault((name, workers), []).append(in_its_own_process(name, work=work, workers=workers))
        first = next(iter(runs.values()))[0]
        print(f"{first['images']} images and {first['questions']} questions a run\n")
        print(table({key: value for key, value in runs.items() if key[0] != PAIRS}, "images"), "\n")
        print(table({key: value for key, value in runs.items() if key[0] in ("ours", PAIRS)}, "questions"))


if __name__ == "__main__":
    main()
