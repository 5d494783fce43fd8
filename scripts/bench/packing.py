"""Seconds of real training steps for 1,000 samples: packed by the plan, and one sample a row padded in three ways.

example:
  python scripts/bench/packing.py DATA --config tiny_real:instruct --tokens-per-row 2048

All ways train on the same samples of one plan, in turns, one step after the other; programs are compiled before. To
the longest of a batch is to a multiple of 128 tokens, as every length is a program of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.config import Config, load
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.schedule import PackedSample
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, concatenate_batches
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.prefetch import device_batch
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State, initial_model
from earthgpt_jax.training.step import make_step

BUCKETS, MULTIPLE = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a dataset directory, or a folder of them")
    parser.add_argument("--config", default="tiny_real:instruct", help="(default: tiny_real:instruct)")
    parser.add_argument("--tokens-per-row", type=int, default=2048, help="(default: 2048)")
    parser.add_argument("--samples", type=int, default=96, help="that each way trains on (default: 96)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a padded batch (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    args = parser.parse_args()

    config = load(
        args.config,
        [
            f"--config.data.source={args.data}", f"--config.data.seq_len={args.seq_len}",
            "--config.data.max_images=0",
        ],
    )  # fmt: skip
    start = initial_model(config)
    data = load_training_data(config, tokenizer=Tokenizer(start.tokenizer))
    rows = PackedSequences.of(data, InputSpec.of(config))
    ways = {name: list(batches) for name, batches in _ways(rows, args.samples, args.batch_size).items()}
    run = _trainer(config, start.params)
    for batches in tqdm(ways.values(), desc="compiling", unit="way"):
        run(batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(args.repeats), desc="measuring", unit="round"):
        for name, batches in ways.items():
            seconds[name].append(run(batches) / _samples(batches) * 1000)
    packed = statistics.median(seconds["packed by the plan"])
    table: list[tuple[str, ...]] = [
        ("", "samples", "occupancy", "s per 1,000 samples, median", "min", "max", "times the plan's")
    ]
    for name, taken in seconds.items():
        used = sum(int((batch.segments > 0).sum()) for batch in ways[name])
        table.append(
            (name, str(_samples(ways[name])), f"{used / sum(batch.segments.size for batch in ways[name]):.3f}",
             *(f"{of(taken):.1f}" for of in (statistics.median, min, max)),
             f"{statistics.median(taken) / packed:.2f}")
        )  # fmt: skip
    print("\n".join(align_columns(table)))


def _samples(batches: Sequence[Batch]) -> int:
    return sum(int(batch.segments.max(axis=1).sum()) for batch in batches)


def _ways(rows: PackedSequences, samples: int, batch_size: int) -> dict[str, Iterator[Batch]]:
    """The same samples, up to the last row that is packed whole."""
    wide = rows.schedule.budget.seq_len
    held: list[PackedSample] = []
    packed: list[Batch] = []
    for number in itertools.count():
        placed = rows.schedule[number]
        if packed and len(held) + len(placed) > samples:
            break
        packed.append(rows[number])
        held += placed
    lengths = [int((rows.build([each]).segments > 0).sum()) for each in held]
    order = np.argsort(lengths, kind="stable")
    width = -(-wide // BUCKETS)

    def padded(chosen: Sequence[int], length: int) -> Batch:
        alone = dataclasses.replace(rows.build, seq_len=length, max_images=1)
        return concatenate_batches([alone([held[place]]) for place in chosen])

    def batched(chosen: Sequence[int], length: Callable[[list[int]], int]) -> Iterator[Batch]:
        for start in range(0, len(chosen), batch_size):
            some = chosen[start : start + batch_size]
            yield padded(some, length([lengths[place] for place in some]))

    def bucketed() -> Iterator[Batch]:
        for bucket, some in itertools.groupby(order.tolist(), lambda place: -(-lengths[place] // width)):
            yield from batched(list(some), lambda _, bucket=bucket: bucket * width)  # type: ignore[misc]

    every = list(range(len(held)))
    # As many tokens a step as eight rows, whichever way.
    step = max(1, batch_size // 8)
    return {
        "padded to T": batched(every, lambda _: wide),
        f"padded to the longest of {batch_size}": batched(every, lambda some: -(-max(some) // MULTIPLE) * MULTIPLE),
        f"{BUCKETS} length buckets": bucketed(),
        "packed by the plan": (concatenate_batches(packed[at : at + step]) for at in range(0, len(packed), step)),
    }


def _trainer(config: Config, params: params_lib.Params) -> Callable[[Sequence[Batch]], float]:
    """Trains on batches; returns the seconds that it took."""
    graphdef, _ = earthgpt.abstract(config.model)
    rules = trainable_paths(config, params)
    place = data_parallel(1)
    trainable, frozen = jax.device_put(params_lib.split(params, rules), place.whole)
    optimizer = make_optimizer(config.optim, rules)
    step = jax.jit(make_step(graphdef, optimizer, microbatches=1), donate_argnums=0)
    state = jax.device_put(State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)), place.whole)

    def run(batches: Sequence[Batch]) -> float:
        nonlocal state
        started = time.perf_counter()
        for batch in batches:
            state, metrics = step(state, frozen, device_batch(batch, place.batch))
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
