"""How fast a run finds its place in a plan: building it, the first row at a late step, and the rows after that.

    python scripts/bench/plan.py                     # 20 sources, 1.3 million questions, step 1,000,000
    python scripts/bench/plan.py --questions 100000 --profile

The length indices are random: lengths, kinds and questions a record as in a mixture of captions, VQA and detection.
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
# Kind -> (weight, questions of a record at most, tokens about).
_KINDS = {
    "caption": (1.0, 5, 40),
    "classification": (1.0, 1, 25),
    "count": (0.5, 4, 30),
    "hbb": (1.0, 1, 400),
    "presence": (0.5, 6, 20),
    "vqa": (1.0, 8, 35),
}
_WEIGHTS = (1.0, 2.0, 0.5, 1.0)  # of sources, in turn
_ROOM = TokenBudget(shared=295, seq_len=2048, max_questions=8)


def _index(rng: np.random.Generator, *, records: int) -> LengthIndex:
    columns = []
    for place, (_, most, about) in enumerate(_KINDS.values()):
        counts = rng.integers(0, most + 1, records) * (rng.random(records) < 0.6)
        record = np.repeat(np.arange(records), counts)
        index = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        tokens = np.clip(rng.gamma(2.0, about / 2, len(record)), 5, 1700)
        columns.append(np.stack([record, np.full_like(record, place), index, tokens.astype(np.int64)]))
    record, kind, index, tokens = np.concatenate(columns, axis=1)
    order = np.lexsort((index, kind, record))
    return LengthIndex(
        kinds=tuple(_KINDS),
        record=record[order].astype(np.int32),
        kind=kind[order].astype(np.uint8),
        index=index[order].astype(np.uint16),
        tokens=tokens[order].astype(np.uint16),
        digests=rng.integers(0, 2**63, records).astype(np.uint64),
        sensors=np.zeros(records, np.uint8),
    )


def _sources(*, questions: int, number: int) -> list[Source]:
    """Of `number` sources of different sizes, `questions` in all, nearly."""
    rng = np.random.default_rng(0)
    mean = 0.6 * sum(most / 2 for _, most, _ in _KINDS.values())
    shares = rng.dirichlet(np.full(number, 2.0))
    return [
        Source(
            name=f"source{place}",
            index=(index := _index(rng, records=max(1, round(questions * share / mean)))),
            records=np.arange(len(index.digests)),
            weight=_WEIGHTS[place % len(_WEIGHTS)],
        )
        for place, share in enumerate(shares)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1_300_000)
    parser.add_argument("--sources", type=int, default=20)
    parser.add_argument("--step", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, too")
    args = parser.parse_args()

    sources = _sources(questions=args.questions, number=args.sources)
    weights = {kind: weight for kind, (weight, _, _) in _KINDS.items()}
    print(f"{sum(len(source.index) for source in sources):,} questions of {args.sources} sources")

    def build() -> PackingSchedule:
        return PackingSchedule(sources, weights=weights, room=_ROOM, max_images=6, seed=0)

    for _ in range(args.repeats):
        times = [time.perf_counter()]
        plan = build()
        times.append(time.perf_counter())
        first = args.step * _BATCH
        plan[first]
        times.append(time.perf_counter())
        for row in range(first + 1, first + 1001):
            plan[row]
        times.append(time.perf_counter())
        built, found, rows = np.diff(times)
        print(
            f"build {built:.3f} s, first row at step {args.step:,} {found:.3f} s, next 1,000 rows {rows:.3f} s; "
            f"{plan.cycle.epochs} epochs of {plan.rows / plan.cycle.epochs:,.0f} rows, "
            f"packing efficiency {plan.packing_efficiency:.4f}"
        )
    if args.profile:
        with cProfile.Profile() as profile:
            build()[args.step * _BATCH]
        pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    main()
