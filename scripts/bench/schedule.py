"""Benchmark the packing schedule: computing it, the first sequence of a late step, and the sequences after it.

    python scripts/bench/schedule.py                     # 20 sources, 1.3 million questions, step 1,000,000
    python scripts/bench/schedule.py --questions 100000 --profile

The length indexes are random. Their lengths, tasks and questions per record resemble a mixture of captions, VQA and
detection.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

import numpy as np

from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import TokenBudget
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source

_BATCH = 128
# Task -> (weight, most questions per record, mean tokens).
TASKS = {
    "caption": (1.0, 5, 40),
    "classification": (1.0, 1, 25),
    "count": (0.5, 4, 30),
    "hbb": (1.0, 1, 400),
    "presence": (0.5, 6, 20),
    "vqa": (1.0, 8, 35),
}
WEIGHTS = {task: weight for task, (weight, _, _) in TASKS.items()}
_SOURCE_WEIGHTS = (1.0, 2.0, 0.5, 1.0)  # in turn
BUDGET = TokenBudget(prefix_tokens=295, seq_len=2048, max_questions=8)


def random_index(rng: np.random.Generator, *, records: int) -> LengthIndex:
    """Return a random length index of a mixture of tasks."""
    columns = []
    for number, (_, most, mean) in enumerate(TASKS.values()):
        counts = rng.integers(0, most + 1, records) * (rng.random(records) < 0.6)
        record = np.repeat(np.arange(records), counts)
        index = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        tokens = np.clip(rng.gamma(2.0, mean / 2, len(record)), 5, 1700)
        columns.append(np.stack([record, np.full_like(record, number), index, tokens.astype(np.int64)]))
    record, task, index, tokens = np.concatenate(columns, axis=1)
    order = np.lexsort((index, task, record))
    return LengthIndex(
        tasks=tuple(TASKS),
        record=record[order].astype(np.int32),
        task=task[order].astype(np.uint8),
        index=index[order].astype(np.uint16),
        tokens=tokens[order].astype(np.uint16),
        digests=rng.integers(0, 2**63, records).astype(np.uint64),
        sensors=np.zeros(records, np.uint8),
    )


def _sources(*, questions: int, count: int) -> list[Source]:
    """Return sources of different sizes that have about `questions` questions together."""
    rng = np.random.default_rng(0)
    mean = 0.6 * sum(most / 2 for _, most, _ in TASKS.values())
    shares = rng.dirichlet(np.full(count, 2.0))
    return [
        Source(
            name=f"source{number}",
            index=(index := random_index(rng, records=max(1, round(questions * share / mean)))),
            records=np.arange(len(index.digests)),
            weight=_SOURCE_WEIGHTS[number % len(_SOURCE_WEIGHTS)],
        )
        for number, share in enumerate(shares)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1_300_000)
    parser.add_argument("--sources", type=int, default=20)
    parser.add_argument("--step", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    args = parser.parse_args()

    sources = _sources(questions=args.questions, count=args.sources)
    print(f"{sum(len(source.index) for source in sources):,} questions of {args.sources} sources")

    def compute() -> PackingSchedule:
        return PackingSchedule(sources, weights=WEIGHTS, budget=BUDGET, max_images=6, seed=0)

    for _ in range(args.repeats):
        times = [time.perf_counter()]
        schedule = compute()
        times.append(time.perf_counter())
        first = args.step * _BATCH
        schedule[first]
        times.append(time.perf_counter())
        for number in range(first + 1, first + 1001):
            schedule[number]
        times.append(time.perf_counter())
        computed, first_sequence, more = np.diff(times)
        print(
            f"computed in {computed:.3f} s, first sequence of step {args.step:,} in {first_sequence:.3f} s, next 1,000 "
            f"in {more:.3f} s; {schedule.cycle.epochs} epochs of "
            f"{schedule.sequences_per_cycle / schedule.cycle.epochs:,.0f} sequences, "
            f"packing efficiency {schedule.packing_efficiency:.4f}"
        )
    if args.profile:
        with cProfile.Profile() as profile:
            compute()[args.step * _BATCH]
        pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    main()
