"""Running: a batch that gives no finite loss, what throughput.jsonl says, a trace, a step that hangs."""

from __future__ import annotations

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

POISONED = 3  # the fourth step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
    return root, (f"data.source={data}", f"init={base}")


@pytest.fixture
def poison(monkeypatch):
    """One batch's loss weights are not numbers, whenever it comes."""

    def placed(batches, sharding):
        for step, batch, arrays in prefetch.prefetch_to_device(batches, sharding):
            bad = arrays._replace(loss_weights=arrays.loss_weights * np.nan)
            yield step, batch, bad if step == POISONED else arrays

    monkeypatch.setattr(loop, "placed", placed)


def _lines(workdir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def _traced_steps(folder: Path) -> set[int]:
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}


def test_a_batch_without_a_finite_loss_is_left_out_or_stops_the_run(world, poison):
    root, overrides = world
    skipping = nano.config("align", *overrides, "optim.on_nan=skip")
    measure = FlopsReference(token=1e6, image=1e7, peak=1e12)
    straight = loop.train(skipping, root / "skip", profile=Profile(steps="4-5"), flops_reference=measure)

    lines = _lines(root / "skip", "metrics.jsonl")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["skipped_in_a_row"] for line in lines] == [0, 0, 0, 1, 0, 0]
    assert [bool(np.isfinite(line["loss"])) for line in lines] == [True, True, True, False, True, True]
    rates = [float(lr_schedule(skipping.optim)(update)) for update in (0, 1, 2, 2, 3, 4)]
    np.testing.assert_allclose([line["lr"] for line in lines], rates, rtol=1e-6)  # of updates, not of batches
    _, found = io.read(straight)
    assert all(np.all(np.isfinite(array)) for array in found.values())

    # Stopped there, and resumed with the other policy from the checkpoint before: the same to the bit.
    with pytest.raises(EarthGPTError, match=r"step 3: the loss is nan.*synthetic/train/.*on_nan=skip"):
        loop.train(nano.config("align", *overrides), root / "stop")
    assert [line["step"] for line in _lines(root / "stop", "metrics.jsonl")] == [1, 2, 3]
    _, resumed = io.read(loop.train(skipping, root / "stop"))
    assert params_lib.fingerprint(resumed) == params_lib.fingerprint(found)
    texts = [(root / name / "metrics.jsonl").read_text() for name in ("skip", "stop")]
    assert texts[0] == texts[1]

    assert _traced_steps(root / "skip" / "profile") == {4, 5}
    start, *rest = _lines(root / "skip", "throughput.jsonl")
    assert (start["first"], start["processes"], start["devices"]) == (0, 1, 8)
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
    whole = rest[-1]["time"] - start["time"]
    assert sum(line["seconds"]["step"] for line in rest) / whole == pytest.approx(rest[-1]["goodput"], rel=1e-3)
    # Everything between the first line and the last step is accounted for, but what came before the first line.
    assert sum(sum(line["seconds"].values()) for line in rest) >= 0.9 * whole
    assert [line["first"] for line in _lines(root / "stop", "throughput.jsonl") if "first" in line] == [0, 2]


@pytest.mark.parametrize(
    ("steps", "message"),
    [("9-12", r"expected steps from 1 to 6.*got 9-12"), ("3-2", "FIRST-LAST"), ("soon", "FIRST-LAST")],
)
def test_steps_that_cannot_be_traced_are_refused(world, steps, message, tmp_path):
    with pytest.raises(EarthGPTError, match=message):
        loop.Profiler(Profile(steps=steps), tmp_path, first=0, last=6)


HANGS_ONCE = """
import sys, threading
from pathlib import Path
from earthgpt_jax.training import feed, loop
from tests.support import nano

work, overrides = Path(sys.argv[1]), sys.argv[2:]

def placed(batches, sharding):
    for step, batch, arrays in feed.placed(batches, sharding):
        if step == 4 and not (work / "hung").exists():
            (work / "hung").touch()
            threading.Event().wait()
        yield step, batch, arrays

loop.placed = placed
loop.train(nano.config("align", *overrides, "watchdog.minutes=0.5"), work)
"""


@pytest.mark.slow
def test_a_run_that_hangs_is_started_again_and_ends_as_if_it_had_not(world):
    root, overrides = world
    again = Path(__file__).resolve().parents[2] / "scripts" / "launch" / "again.sh"
    done = subprocess.run(
        ["bash", again, sys.executable, "-c", HANGS_ONCE, root / "hangs", *overrides],
        env=os.environ | {"PAUSE": "0"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "again.sh: status 75; restart 1 of 20" in done.stderr  # a slow machine may have compiled too long before
    report = (root / "hangs" / "hang" / "process-0.txt").read_text()
    assert "no step was finished for 0.5 minutes" in report and "in placed" in report
    _, straight = io.read(loop.train(nano.config("align", *overrides), root / "undisturbed"))
    _, found = io.read(root / "hangs" / "model")
    assert params_lib.fingerprint(found) == params_lib.fingerprint(straight)
    texts = [(root / name / "metrics.jsonl").read_text() for name in ("hangs", "undisturbed")]
    assert texts[0] == texts[1]
    *_, before, last = [line for line in _lines(root / "hangs", "throughput.jsonl") if "first" in line]
    assert last["first"] == 4 and last["time"] - before["time"] > 30
