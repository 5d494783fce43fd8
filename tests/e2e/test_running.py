"""Running: a batch whose loss is not finite, throughput.jsonl, a trace, and a step that hangs."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training import loop, prefetch
from earthgpt_jax.training.optim import lr_schedule
from earthgpt_jax.training.profile import Profile
from earthgpt_jax.training.throughput import FlopsReference
from tests.support import nano

POISONED = 3  # index of the step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
    return root, (f"data.source={data}", f"init={base}")


@pytest.fixture
def poison(monkeypatch):
    """Replace the loss weights of one batch by NaN."""

    def poisoned(batches, sharding):
        for step, batch, arrays in prefetch.prefetch_to_device(batches, sharding):
            bad = dataclasses.replace(arrays, loss_weights=arrays.loss_weights * np.nan)
            yield step, batch, bad if step == POISONED else arrays

    monkeypatch.setattr(loop, "prefetch_to_device", poisoned)


def _lines(workdir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def _traced_steps(folder: Path) -> set[int]:
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}


def test_a_batch_whose_loss_is_not_finite_is_skipped_or_stops_the_run(world, poison):
    root, overrides = world
    skipping = nano.config("align", *overrides, "optim.on_nan=skip")
    reference = FlopsReference(per_token=1e6, per_image=1e7, peak=1e12)
    straight = loop.train(skipping, root / "skip", profile=Profile(steps="4-5"), flops_reference=reference)

    lines = _lines(root / "skip", "metrics.jsonl")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["consecutive_skips"] for line in lines] == [0, 0, 0, 1, 0, 0]
    assert [bool(np.isfinite(line["loss"])) for line in lines] == [True, True, True, False, True, True]
    rates = [float(lr_schedule(skipping.optim)(update)) for update in (0, 1, 2, 2, 3, 4)]
    # The schedule counts updates, not batches.
    np.testing.assert_allclose([line["lr"] for line in lines], rates, rtol=1e-6)
    _, found = io.read(straight)
    assert all(np.all(np.isfinite(array)) for array in found.values())

    # Stopped at that batch, then resumed with on_nan=skip from the previous checkpoint: bit-identical.
    with pytest.raises(EarthGPTError, match=r"step 3: the loss is nan.*synthetic/train/.*on_nan=skip"):
        loop.train(nano.config("align", *overrides), root / "stop")
    assert [line["step"] for line in _lines(root / "stop", "metrics.jsonl")] == [1, 2, 3]
    _, resumed = io.read(loop.train(skipping, root / "stop"))
    assert params_lib.fingerprint(resumed) == params_lib.fingerprint(found)
    texts = [(root / name / "metrics.jsonl").read_text() for name in ("skip", "stop")]
    assert texts[0] == texts[1]

    assert _traced_steps(root / "skip" / "profile") == {4, 5}
    start, *rest = _lines(root / "skip", "throughput.jsonl")
    (cost,) = (line for line in rest if "step" not in line)
    rest.remove(cost)
    assert (start["start_step"], start["processes"], start["devices"]) == (0, 1, 8)
    assert [line["step"] for line in rest] == [1, 2, 3, 4, 5, 6]
    for line, metrics in zip(rest, lines, strict=True):
        seconds = line["seconds"]
        running = sum(seconds.values()) - seconds["start"] - seconds["compile"]
        assert line["tokens_per_second"] * running == pytest.approx(metrics["tokens"])
        assert line["positions_per_second"] * running == pytest.approx(4 * 96)
        work = metrics["tokens"] * 1e6 + metrics["images"] * 1e7
        assert line["mfu"] == pytest.approx(work / (running * 1e12))
        assert 0 < line["goodput"] < 1
    assert rest[0]["seconds"]["start"] > 0 and rest[0]["seconds"]["compile"] > 0
    assert sum(line["seconds"]["start"] + line["seconds"]["compile"] for line in rest[1:]) == 0
    elapsed = rest[-1]["time"] - start["time"]
    assert sum(line["seconds"]["step"] for line in rest) / elapsed == pytest.approx(rest[-1]["goodput"], rel=1e-3)
    # All time between the first line and the last step is attributed to a cause.
    assert sum(sum(line["seconds"].values()) for line in rest) >= 0.9 * elapsed
    assert [line["start_step"] for line in _lines(root / "stop", "throughput.jsonl") if "start_step" in line] == [0, 2]


@pytest.mark.parametrize(
    ("steps", "message"),
    [("9-12", r"expected steps between 1 and 6.*got 9-12"), ("3-2", "FIRST-LAST"), ("soon", "FIRST-LAST")],
)
def test_a_range_of_steps_that_cannot_be_traced_is_refused(world, steps, message, tmp_path):
    with pytest.raises(EarthGPTError, match=message):
        loop.Profiler(Profile(steps=steps), tmp_path, start_step=0, last=6)


HANGS_ONCE = """
import sys, threading
from pathlib import Path
from earthgpt_jax.training import loop, prefetch
from tests.support import nano

work, overrides = Path(sys.argv[1]), sys.argv[2:]

def hang_once(batches, sharding):
    for step, batch, arrays in prefetch.prefetch_to_device(batches, sharding):
        if step == 4 and not (work / "hung").exists():
            (work / "hung").touch()
            threading.Event().wait()
        yield step, batch, arrays

loop.prefetch_to_device = hang_once
loop.train(nano.config("align", *overrides, "watchdog.minutes=0.5"), work)
"""


@pytest.mark.slow
def test_a_run_that_hangs_is_restarted_and_ends_like_an_undisturbed_run(world):
    root, overrides = world
    restart = Path(__file__).resolve().parents[2] / "scripts" / "launch" / "restart.sh"
    done = subprocess.run(
        ["bash", restart, sys.executable, "-c", HANGS_ONCE, root / "hangs", *overrides],
        env=os.environ | {"PAUSE": "0"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # On a slow machine, compilation may exceed the limit first.
    assert "restart.sh: status 75; restart 1 of 20" in done.stderr
    report = (root / "hangs" / "hang" / "process-0.txt").read_text()
    assert "no step finished for 0.5 minutes" in report and "in hang_once" in report
    _, straight = io.read(loop.train(nano.config("align", *overrides), root / "undisturbed"))
    _, found = io.read(root / "hangs" / "model")
    assert params_lib.fingerprint(found) == params_lib.fingerprint(straight)
    texts = [(root / name / "metrics.jsonl").read_text() for name in ("hangs", "undisturbed")]
    assert texts[0] == texts[1]
    *_, before, last = [line for line in _lines(root / "hangs", "throughput.jsonl") if "start_step" in line]
    assert last["start_step"] == 4 and last["time"] - before["time"] > 30
