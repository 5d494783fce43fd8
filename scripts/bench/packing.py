"""Benchmark training steps with packed sequences against three ways of padding, in seconds per 1,000 samples.

example:
  python scripts/bench/packing.py DATA --config tiny_real:instruct --seq-len 2048

All ways train on the same samples in turn, after compilation. Padding to the longest of a batch rounds up to a multiple
of 128 tokens, because every length is compiled separately.
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
from earthgpt_jax.training.initial import load_initial_params
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.prefetch import device_batch
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step

BUCKETS, MULTIPLE = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a dataset directory, or a folder of them")
    parser.add_argument("--config", default="tiny_real:instruct", help="(default: tiny_real:instruct)")
    parser.add_argument("--seq-len", type=int, default=2048, help="(default: 2048)")
    parser.add_argument("--samples", type=int, default=96, help="samples that each way trains on (default: 96)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per padded batch (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    args = parser.parse_args()

    config = load(
        args.config,
        [
            f"--config.data.source={args.data}", f"--config.data.seq_len={args.seq_len}",
            "--config.data.max_images=0",
        ],
    )  # fmt: skip
    start, params = load_initial_params(config)
    data = load_training_data(config, tokenizer=Tokenizer(start.tokenizer))
    sequences = PackedSequences.of(data, InputSpec.of(config))
    ways = {name: list(batches) for name, batches in _ways(sequences, args.samples, args.batch_size).items()}
    run = _trainer(config, params)
    for batches in tqdm(ways.values(), desc="compiling", unit="way"):
        run(batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(args.repeats), desc="measuring", unit="round"):
        for name, batches in ways.items():
            seconds[name].append(run(batches) / _samples(batches) * 1000)
    packed = statistics.median(seconds["packed"])
    table: list[tuple[str, ...]] = [
        ("", "samples", "packing efficiency", "s per 1,000 samples, median", "min", "max", "relative to packed")
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


def _ways(sequences: PackedSequences, samples: int, batch_size: int) -> dict[str, Iterator[Batch]]:
    """Return batches of the same samples for each way; packing stops at the last complete sequence."""
    schedule, build = sequences.schedule, sequences.build
    seq_len = schedule.budget.seq_len
    chosen: list[PackedSample] = []
    packed: list[Batch] = []
    for number in itertools.count():
        if packed and len(chosen) + len(schedule[number]) > samples:
            break
        packed.append(sequences[number])
        chosen += schedule[number]
    lengths = [int((build([sample]).segments > 0).sum()) for sample in chosen]
    order = np.argsort(lengths, kind="stable")
    width = -(-seq_len // BUCKETS)

    def padded(numbers: Sequence[int], length: int) -> Batch:
        build_one = dataclasses.replace(build, seq_len=length, max_images=1)
        return concatenate_batches([build_one([chosen[number]]) for number in numbers])

    def batched(numbers: Sequence[int], length: Callable[[list[int]], int]) -> Iterator[Batch]:
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            yield padded(part, length([lengths[number] for number in part]))

    def bucketed() -> Iterator[Batch]:
        for bucket, numbers in itertools.groupby(order.tolist(), lambda number: -(-lengths[number] // width)):
            yield from batched(list(numbers), lambda _, bucket=bucket: bucket * width)  # type: ignore[misc]

    everything = list(range(len(chosen)))
    # An eighth as many packed sequences per step, so that all ways have about as many tokens per step.
    step = max(1, batch_size // 8)
    return {
        "padded to T": batched(everything, lambda _: seq_len),
        f"padded to the longest of {batch_size}": batched(
            everything, lambda part: -(-max(part) // MULTIPLE) * MULTIPLE
        ),
        f"{BUCKETS} length buckets": bucketed(),
        "packed": (concatenate_batches(packed[at : at + step]) for at in range(0, len(packed), step)),
    }


def _trainer(config: Config, params: params_lib.Params) -> Callable[[Sequence[Batch]], float]:
    """Return a function that trains on batches and returns the seconds that it took."""
    graphdef, _ = earthgpt.abstract(config.model)
    rules = trainable_paths(config, params)
    place = data_parallel(1)
    trainable, frozen = jax.device_put(params_lib.split(params, rules), place.replicated)
    optimizer = make_optimizer(config.optim, rules)
    step = jax.jit(make_step(graphdef, optimizer, microbatches=1), donate_argnums=0)
    state = jax.device_put(State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)), place.replicated)

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
