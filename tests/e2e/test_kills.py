"""Runs that are killed or preempted at any moment resume and end bit-identical to an undisturbed run.

The runs are `earthgpt train` processes. Every checkpoint that a killed run leaves is compared with that of
the same step of the undisturbed run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training import inspection
from earthgpt_jax.training.loop import train
from tests.support import nano

SEED = 20240101
LIMIT = 600  # seconds that any process here may take on a busy machine
GRACE = 30  # default seconds between SIGTERM and SIGKILL in Kubernetes and SLURM


class World:
    """A dataset, a base model, and an undisturbed run."""

    def __init__(self, root: Path, *, steps: int):
        self.root, self.steps = root, steps
        data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
        self.overrides = (
            f"data.source={data}", f"init={base}", f"optim.steps={steps}", "checkpoint.every_steps=3", "log_every=7"
        )  # fmt: skip
        self.alone, self.output = root / "alone", root / "output.txt"
        train(nano.config("align", *self.overrides, "checkpoint.keep=1000"), self.alone)

    def start(self, workdir: Path, *overrides: str) -> subprocess.Popen:
        words = nano.arguments("align", *self.overrides, *overrides)
        command = [sys.executable, "-m", "earthgpt_jax", "train", "--workdir", str(workdir)]
        with self.output.open("w") as output:  # an unread pipe would fill up
            return subprocess.Popen([*command, *words], stdout=output, stderr=output, start_new_session=True)

    def finish(self, workdir: Path) -> None:
        assert self.start(workdir).wait(LIMIT) == 0, self.output_tail()

    def output_tail(self) -> str:
        """The last lines that the last process wrote."""
        return self.output.read_text()[-3000:]

    def until(self, reached: Callable[[], bool], process: subprocess.Popen) -> None:
        end = time.monotonic() + LIMIT
        while not reached():
            assert process.poll() is None, f"ended early: {self.output_tail()}"
            assert time.monotonic() < end, self.output_tail()
            time.sleep(0.002)

    @functools.lru_cache(maxsize=400)  # noqa: B019  (lives as long as the tests of this module)
    def state(self, step: int) -> dict[str, np.ndarray]:
        return _arrays(self.alone / "checkpoints" / str(step))

    def check_same(self, workdir: Path) -> None:
        """Check that a finished run equals the undisturbed one: model, optimizer state, every line of the log."""
        (_, expected), (_, found) = io.read(self.alone / "model"), io.read(workdir / "model")
        assert params_lib.fingerprint(found) == params_lib.fingerprint(expected)
        _check_equal(_arrays(workdir / "checkpoints" / str(self.steps)), self.state(self.steps))
        assert _log(workdir) == _log(self.alone)
        assert all(summary.intact for summary in inspection.inspect(workdir) or [])

    def check_left(self, workdir: Path) -> Counter:
        """Check that every checkpoint that a killed run left is complete and correct; count what it left."""
        folder, counts = workdir / "checkpoints", Counter()
        for number, step in enumerate(reversed(inspection.checkpoint_steps(folder) if folder.is_dir() else [])):
            try:
                arrays = _arrays(folder / str(step))
            except Exception:  # an older one that was being deleted
                assert number > 0, f"the newest checkpoint, of step {step}, cannot be read"
                counts["partly deleted"] += 1
                continue
            _check_equal(arrays, self.state(step))
            counts["complete"] += 1
        counts["unfinished"] = len(inspection.unfinished_checkpoints(folder))
        return counts


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read the state of a checkpoint as NumPy arrays, without our code."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(
            folder / "state",
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder / "state").item_metadata.tree
            ),
        )
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys() and len(found) > 10
    different = [path for path, array in found.items() if array.tobytes() != expected[path].tobytes()]
    assert not different


def _log(workdir: Path) -> list[tuple]:
    """Return what each step computed, and from which data."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        tuple(line[name] for name in ("step", "loss", "grad_norm", "tokens", "lr", "data_digest")) for line in lines
    ]


def _logged(workdir: Path) -> int:
    """Count the complete lines of the log."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Moments:
    """Moments at which to kill a run in `workdir`; each method returns when the moment has come."""

    def __init__(self, world: World, workdir: Path, *, seed: int):
        self._world, self._workdir, self._rng = world, workdir, np.random.default_rng(seed)

    def starting(self, process: subprocess.Popen) -> None:
        time.sleep(self._rng.uniform(0.1, 6))

    def training(self, process: subprocess.Popen) -> None:
        for _ in range(self._rng.integers(2, 10)):
            lines = _logged(self._workdir)
            self._world.until(lambda lines=lines: _logged(self._workdir) != lines, process)
        time.sleep(self._rng.uniform(0, 0.05))

    def saving(self, process: subprocess.Popen) -> None:
        seen = self._unfinished()  # left by the previous run until this one removes it
        for _ in range(self._rng.integers(1, 3)):
            self._world.until(lambda seen=seen: bool(self._unfinished() - seen), process)
            seen = self._unfinished()
        time.sleep(self._rng.uniform(0, 0.03))

    def _unfinished(self) -> set[tuple[Path, int]]:
        unfinished = set()
        for path in inspection.unfinished_checkpoints(self._workdir / "checkpoints"):
            with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                unfinished.add((path, path.stat().st_ino))
        return unfinished


def _kill(world: World, workdir: Path, moments: Sequence[str], *, seed: int) -> None:
    """Start the run and kill it once at each of the moments."""
    wait, total = Moments(world, workdir, seed=seed), Counter()
    _print(f"seed {seed}")
    for number, moment in enumerate(moments):
        process = world.start(workdir)
        getattr(wait, moment)(process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(LIMIT) == -signal.SIGKILL, world.output_tail()
        left = world.check_left(workdir)
        total += left
        _print(f"kill {number + 1}, {moment}: {_logged(workdir)} steps in the log; {dict(left)}")
    assert not (workdir / "model").exists(), "the run ended before the last kill; it needs more steps"
    assert total["unfinished"], "no kill interrupted a save"


def _preempt(world: World, workdir: Path) -> None:
    """Start the run and send SIGTERM to it and its data worker twice, as schedulers do."""
    process = world.start(workdir, "data.workers=1", "checkpoint.every_steps=50")
    newest = max(inspection.checkpoint_steps(workdir / "checkpoints"))
    world.until(lambda: _logged(workdir) >= newest + 4, process)
    began = time.monotonic()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.01)
    assert process.wait(GRACE) == 75, world.output_tail()
    step = _logged(workdir)
    assert newest + 4 <= step < world.steps and step in inspection.checkpoint_steps(workdir / "checkpoints")
    message = next(line for line in world.output_tail().splitlines() if line.startswith("stopped (SIGTERM"))
    assert f"step {step} of {world.steps} is saved in {workdir / 'checkpoints' / str(step)}" in message
    _print(f"{message} Its process ended {time.monotonic() - began:.1f} s after the signal")


def _print(text: str) -> None:
    print(text)  # noqa: T201


@pytest.mark.timeout(1800)  # a dozen processes
def test_a_run_killed_during_a_save_and_then_preempted_resumes_bit_for_bit(tmp_path):
    world = World(tmp_path, steps=30)
    _kill(world, tmp_path / "run", ["saving"], seed=SEED)
    _preempt(world, tmp_path / "run")
    world.finish(tmp_path / "run")
    world.check_same(tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_like_an_undisturbed_run(tmp_path):
    world = World(tmp_path, steps=240)
    moments = ["starting"] * 4 + ["training"] * 8 + ["saving"] * 8
    _kill(world, tmp_path / "run", np.random.default_rng(SEED).permutation(moments), seed=SEED)
    world.finish(tmp_path / "run")
    world.check_same(tmp_path / "run")
