"""Throughput: attribution of time with a fake clock, goodput over several starts, FLOPs references, TensorBoard."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import flops_reference
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.training.throughput import (
    COMPILE,
    INPUT,
    SAVE,
    FlopsReference,
    StepTimer,
    ThroughputLog,
    goodput,
)


class _FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def _spend(timer: StepTimer, time: _FakeClock, cause: str, seconds: float) -> None:
    with timer.measure(cause):
        time.advance(seconds)


def test_waiting_for_a_batch_while_the_devices_work_costs_nothing():
    time = _FakeClock()
    timer = StepTimer(time)
    time.advance(5)
    timer.end_startup()
    _spend(timer, time, INPUT, 2)  # 5..7
    _spend(timer, time, COMPILE, 10)  # 7..17; the first step is dispatched at 17
    _spend(timer, time, INPUT, 3)  # 17..20; the first step runs 17..21
    dispatched = time.now  # the second step waits for the first: 21..25
    _spend(timer, time, INPUT, 8)  # 20..28: the devices are idle from 25 on
    timer.record_step(dispatched=17, finished=21)
    timer.record_step(dispatched=dispatched, finished=25)
    time.advance(1)  # the host does something else
    timer.record_step(dispatched=time.now, finished=32)
    assert timer.collect() == {"step": 4 + 4 + 3, "input": 2 + 3, "save": 0, "compile": 10, "start": 5, "other": 1}
    _spend(timer, time, SAVE, 4)  # 29..33; the step runs until 32
    timer.record_step(dispatched=time.now, finished=35)
    assert timer.collect() == {"step": 2, "input": 0, "save": 1, "compile": 0, "start": 0, "other": 0}


def test_measure_waits_yields_all_items_and_times_each():
    time = _FakeClock()
    timer = StepTimer(time)

    def slow():
        for item in (None, 1):
            time.advance(2)
            yield item

    assert list(timer.measure_waits("input", slow())) == [None, 1]
    timer.record_step(dispatched=time.now, finished=time.now)
    assert timer.collect()["input"] == 4


def _step(step: int, steps: int, work: float, at: float) -> dict:
    return {"step": step, "steps": steps, "time": at, "seconds": {"step": work}}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"start_step": 0, "time": 0}, _step(10, 10, 30, 60), _step(20, 10, 30, 100)], 60 / 100),
        # Killed after step 20 and resumed from step 15 after a pause: half of the second ten steps is repeated.
        (
            [{"start_step": 0, "time": 0}, _step(10, 10, 30, 60), _step(20, 10, 40, 100),
             {"start_step": 15, "time": 150}, _step(25, 10, 30, 200)],
            (30 + 20 + 30) / 200,
        ),
        # Killed twice after the same checkpoint: the steps of the first start count once.
        (
            [{"start_step": 0, "time": 0}, _step(10, 10, 10, 20), {"start_step": 4, "time": 30}, _step(10, 6, 6, 50),
             {"start_step": 4, "time": 60}, _step(10, 6, 6, 100)],
            (4 + 6) / 100,
        ),
        ([{"start_step": 0, "time": 7}], 0),
    ],
)  # fmt: skip
def test_goodput(lines, expected):
    assert goodput(lines) == pytest.approx(expected)


def test_the_log_continues_after_a_line_that_was_cut_off(tmp_path):
    time = _FakeClock()
    seconds = {"step": 6.0, "input": 2.0, "save": 0.0, "compile": 1.0, "start": 1.0, "other": 0.0}
    reference = FlopsReference(per_token=3e9, per_image=1e9, peak=1e12)
    metadata = {"devices": 8}
    one = ThroughputLog(
        tmp_path, start_step=0, positions_per_step=100, flops_reference=None, metadata=metadata, now=time
    )
    time.advance(10)
    line = one.record(4, steps=4, tokens=320, images=8, seconds=seconds)
    one.close()
    assert (line["tokens_per_second"], line["positions_per_second"], line["images_per_second"]) == (40, 50, 1)
    assert line["step_seconds"] == 1.5 and line["goodput"] == 0.6 and "mfu" not in line
    with (tmp_path / "throughput.jsonl").open("a") as file:
        file.write('{"step": 5, "ti')
    time.advance(10)
    two = ThroughputLog(
        tmp_path, start_step=2, positions_per_step=100, flops_reference=reference, metadata=metadata, now=time
    )
    time.advance(10)
    line = two.record(6, steps=4, tokens=320, images=8, seconds=seconds)
    two.close()
    assert line["goodput"] == pytest.approx((3 + 6) / 30)
    assert line["mfu"] == pytest.approx((320 * 3e9 + 8 * 1e9) / (8 * 1e12))
    texts = (tmp_path / "throughput.jsonl").read_text().splitlines()
    assert json.loads(texts[0]) == {"start_step": 0, "time": 0, "devices": 8}
    assert [sorted(json.loads(text))[-1] for text in texts] == ["time", "tokens_per_second"] * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v5", 459), ("TPU v6 lite", 918), ("NVIDIA H100 80GB HBM3", 989),
     ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("cpu", None), ("Tesla T4", None)],
)  # fmt: skip
def test_peak_rates_are_known_for_these_devices_only(kind, expected):
    assert flops_reference.peak_tflops(kind) == expected


@pytest.mark.parametrize(("stage", "per_token"), [("align", 59.8e9), ("instruct", 51.4e9)])
def test_flops_of_the_13b_model_agree_with_a_count_by_hand(stage, per_token):
    """Per parameter and token: 2 FLOPs forward, 2 for the input gradient (not in layer 0), 2 for a trainable kernel."""
    token, image = flops_reference.flops_per_token_and_image(config_lib.load(f"earthgpt_13b:{stage}"))
    assert token == pytest.approx(per_token, rel=0.01)
    assert 0.2e12 < image < 1e12  # DINOv2-L at 224 px 0.16, ConvNeXt-L at 512 px some 0.35, the projector 257 tokens


def test_a_log_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "throughput.jsonl").write_text('{"first": 0, "time": 0, "devices": 8}\n')
    with pytest.raises(EarthGPTError, match=r"written by an earlier version\. Delete it"):
        ThroughputLog(tmp_path, start_step=0, positions_per_step=1, flops_reference=None, metadata={})


OPENS_A_LOG = """
import sys
from pathlib import Path
from earthgpt_jax.training.event_files import EventFiles
writer = EventFiles(Path(sys.argv[1]), purge_step=0)
writer.add_scalar("loss", 1.0, 1)
writer.close()
assert "torch" not in sys.modules, "TensorBoard's writer imported torch"
"""


def test_tensorboard_logging_does_not_import_torch(tmp_path):
    done = subprocess.run([sys.executable, "-c", OPENS_A_LOG, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert next(tmp_path.iterdir()).stat().st_size > 100
