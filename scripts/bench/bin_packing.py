"""Compare the packing schedule's bin packing with best-fit decreasing: packing efficiency and seconds.

    python scripts/bench/bin_packing.py                                # a random mixture of tasks
    python scripts/bench/bin_packing.py DATASETS --config earthgpt_13b:instruct

Both pack all samples of the first epoch, and a million samples drawn from it, into sequences of `--seq-len` tokens.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import schedule as random_data

from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.config import load
from earthgpt_jax.input.packing.bins import SequencePattern, Size, pack
from earthgpt_jax.input.packing.sampler import EpochSampler, sampling_cycle
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.tokenizer import Tokenizer

MILLION = 1_000_000


def best_fit_decreasing(counts: Mapping[Size, int], *, seq_len: int, max_images: int) -> tuple[SequencePattern, ...]:
    """Put each sample, longest first, into the fullest sequence that has room for it; counts as in `pack`.

    Sequences of equal contents are handled together.
    """
    open_: dict[Size, list[SequencePattern]] = {}  # by free tokens and images
    order: list[Size] = []  # the keys of `open_`, sorted
    closed: list[SequencePattern] = []
    shortest = min(tokens for (tokens, _), count in counts.items() if count)

    def put(free: Size, pattern: SequencePattern) -> None:
        if free[0] < shortest or not free[1]:
            closed.append(pattern)
        else:
            if free not in open_:
                bisect.insort(order, free)
            open_.setdefault(free, []).append(pattern)

    for size in sorted((size for size, count in counts.items() if count), reverse=True):
        (tokens, images), left = size, counts[size]
        while left:
            fitting = (free for free in order[bisect.bisect_left(order, (tokens, 0)) :] if free[1] >= images)
            free = next(fitting, (seq_len, max_images))
            pattern = SequencePattern((), left)
            if free in open_:
                pattern = open_[free].pop()
                if not open_[free]:
                    del open_[free]
                    order.remove(free)
            each = min(free[0] // tokens, free[1] // images if images else left, left)
            filled = min(pattern.count, left // each)
            left -= filled * each
            put((free[0] - each * tokens, free[1] - each * images),
                SequencePattern((*pattern.sizes, *[size] * each), filled))  # fmt: skip
            if pattern.count > filled and pattern.sizes:
                put(free, SequencePattern(pattern.sizes, pattern.count - filled))
    return (*closed, *(pattern for patterns in open_.values() for pattern in patterns))


def compare(lengths: Sequence[int], *, seq_len: int, max_images: int) -> list[tuple[str, ...]]:
    """Return a row for each algorithm: samples, packing efficiency, seconds."""
    counts = {(tokens, 1): count for tokens, count in collections.Counter(lengths).items()}
    rows: list[tuple[str, ...]] = []
    for name, algorithm in (("minimum bin slack", pack), ("best-fit decreasing", best_fit_decreasing)):
        began = time.perf_counter()
        patterns = algorithm(counts, seq_len=seq_len, max_images=max_images)
        seconds = time.perf_counter() - began
        assert sum(len(pattern.sizes) * pattern.count for pattern in patterns) == len(lengths)
        efficiency = sum(lengths) / (seq_len * sum(pattern.count for pattern in patterns))
        rows.append((name, f"{len(lengths):,}", str(seq_len), str(max_images), f"{efficiency:.4f}", f"{seconds:.2f}"))
    return rows


def _random_lengths() -> tuple[np.ndarray, int]:
    index = random_data.random_index(np.random.default_rng(0), records=20_000)
    cycle = sampling_cycle(random_data.WEIGHTS)
    sampler = EpochSampler(index, times=cycle.times, epochs=cycle.epochs, budget=random_data.BUDGET, seed=0)
    budget = random_data.BUDGET
    return sampler.epoch(0).tokens, budget.seq_len // (budget.prefix_tokens + 1)


def _dataset_lengths(datasets: Path, recipe: str, *, seq_len: int) -> tuple[np.ndarray, int]:
    config = load(recipe, [f"--config.data.source={datasets}", f"--config.data.seq_len={seq_len}"])
    tokenizer = Tokenizer(assets_path("tiny", "tokenizer.model"))
    schedule = load_training_data(config, tokenizer=tokenizer).schedule
    return np.concatenate([samples.tokens for samples in schedule.samples[0]]), schedule.max_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="?", help="a dataset directory, or a folder of several")
    parser.add_argument("--config", default="earthgpt_13b:instruct", help="recipe (default: earthgpt_13b:instruct)")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens per sequence (default: 2048)")
    parser.add_argument("--max-images", type=int, help="images per sequence (default: as many as fit)")
    args = parser.parse_args()

    recipe, seq_len = args.config, args.seq_len
    lengths, most = _dataset_lengths(args.datasets, recipe, seq_len=seq_len) if args.datasets else _random_lengths()
    drawn = np.random.default_rng(0).choice(lengths, MILLION)
    rows: list[tuple[str, ...]] = [("", "samples", "T", "I", "packing efficiency", "seconds")]
    for tokens in (lengths, drawn):
        rows += compare(tokens.tolist(), seq_len=args.seq_len, max_images=args.max_images or most)
    print("\n".join(align_columns(rows)))


if __name__ == "__main__":
    main()
