"""Measure the cost of checkpoints: how long a save blocks the step loop, how long it takes, and how large it is.

    python scripts/bench/saving.py
    python scripts/bench/saving.py --config earthgpt_13b:instruct --state-only

Trains the recipe (default: both stages of `tiny`) on synthetic data with a checkpoint every few steps. `blocks` is the
time that the step loop waits for a save, `written` the time until the save is complete. The shares are relative to the
median time of a step during which nothing is saved, and to 500 such steps. With `--state-only`, a random state with the
recipe's shapes is saved from the devices of this machine, and no step is run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax.config import CheckpointConfig, Config, load
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.models import earthgpt
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.lifecycle import CheckpointScheduler
from earthgpt_jax.training.loop import train
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State


def trained_run(config: Config, workdir: Path) -> tuple[list[float], list[float]]:
    """Train, and return the milliseconds of each step without a save, and those that each save blocks the loop."""
    steps, blocks, last = [], [], [0.0]
    should_save, save = CheckpointScheduler.should_save, Checkpoints.save

    def timed_should_save(self: CheckpointScheduler, step: int) -> bool:
        now = time.perf_counter()
        if step > 5 and (step - 1) % config.checkpoint.every_steps > 2:  # compiled, and no save in progress
            steps.append((now - last[0]) * 1e3)
        last[0] = now
        return should_save(self, step)

    def timed_save(self: Checkpoints, *args: Any) -> None:
        began = time.perf_counter()
        save(self, *args)
        blocks.append((time.perf_counter() - began) * 1e3)

    with (
        mock.patch.object(CheckpointScheduler, "should_save", timed_should_save),
        mock.patch.object(Checkpoints, "save", timed_save),
    ):
        train(config, workdir)
    return steps, blocks[1:]  # the first save compiles the checksums and starts Orbax's threads


def random_state(config: Config) -> State:
    """Return a state with the shapes of a recipe and normally distributed values, which do not compress."""
    _, shapes = earthgpt.abstract(config.model)
    rules = trainable_paths(config, shapes)
    rng = np.random.default_rng(0)
    trainable = {path: jnp.asarray(rng.standard_normal(shapes[path].shape, np.float32)) for path in rules}
    moments = make_optimizer(config.optim, rules).init(trainable)
    leaves, structure = jax.tree.flatten(moments)
    leaves = [jnp.asarray(rng.standard_normal(leaf.shape).astype(leaf.dtype)) for leaf in leaves]
    return State(jnp.int32(1), trainable, jax.tree.unflatten(structure, leaves))


def saved(state: State, folder: Path, *, times: int) -> Iterator[tuple[float, float, int]]:
    """Save several times; yield the milliseconds that a save blocks and takes in total, and its bytes on disk."""
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=1))
    for step in range(times):
        began = time.perf_counter()
        checkpoints.save(step, state, {})
        blocked = time.perf_counter()
        checkpoints.wait()
        done = time.perf_counter()
        files = [path for path in checkpoints.folder(step).rglob("*") if path.is_file()]
        yield (blocked - began) * 1e3, (done - began) * 1e3, sum(path.stat().st_size for path in files)
    checkpoints.close()


def _line(name: str, state: State, folder: Path, *, steps: list[float], blocks: list[float], times: int) -> str:
    alone = list(saved(state, folder, times=times + 1))[1:]
    blocks = blocks or [blocked for blocked, _, _ in alone]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    blocking, written = statistics.median(blocks), statistics.median([done for _, done, _ in alone])
    line = f"{name:<24} {size / 1e6:>9.2f} {alone[-1][2] / 1e6:>9.2f} {blocking:>9.1f} {written:>10.1f}"
    if not steps:
        return line
    step = statistics.median(steps)
    return f"{line} {step:>9.1f} {blocking / step:>8.1%} {blocking / step / 500:>9.3%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", action="append", help="a recipe with its stage (default: tiny:align, tiny:instruct)"
    )
    parser.add_argument("--state-only", action="store_true", help="save a random state of its shapes without training")
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--every", type=int, default=8, help="number of steps between saves")
    args = parser.parse_args()
    print(f"{'':<24} {'state MB':>9} {'disk MB':>9} {'blocks ms':>9} {'written ms':>10} {'step ms':>9} "
          f"{'of step':>8} {'of 500':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        splits = {"train": SyntheticSource("train", 64), "test": SyntheticSource("test", 4)}
        write_dataset(splits, out=folder / "data", name="synthetic")
        for number, name in enumerate(args.config or ["tiny:align", "tiny:instruct"]):
            fields = {"data.source": folder / "data", "checkpoint.every_steps": args.every, "optim.warmup_steps": 2,
                      "optim.steps": args.every * (args.saves + 1)}  # fmt: skip
            config = load(name, [f"--config.{field}={value}" for field, value in fields.items()])
            measured = ([], []) if args.state_only else trained_run(config, folder / f"run{number}")
            print(_line(name, random_state(config), folder / f"alone{number}", steps=measured[0], blocks=measured[1],
                        times=args.saves), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
