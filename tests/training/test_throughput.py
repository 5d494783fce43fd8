"""Where the time of a run goes: by hand-made clocks, and goodput over several starts."""

from __future__ import annotations

import json

import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import flops_reference
from earthgpt_jax.training import step_timer as clock_lib
from earthgpt_jax.training.throughput import FlopsReference, Throughput, goodput


class _Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def _waited(clock: clock_lib.StepTimer, time: _Time, cause: str, seconds: float) -> None:
    with clock.during(cause):
        time.passes(seconds)


def test_a_batch_that_was_waited_for_while_the_devices_worked_costs_nothing():
    time = _Time()
    clock = clock_lib.StepTimer(time)
    time.passes(5)
    clock.started()
    _waited(clock, time, clock_lib.INPUT, 2)  # 5..7
    _waited(clock, time, clock_lib.COMPILE, 10)  # 7..17, the first step was handed over at 17
    _waited(clock, time, clock_lib.INPUT, 3)  # 17..20; the first step needs 17..21
    called = time.now  # the second waits for the first: 21..25
    _waited(clock, time, clock_lib.INPUT, 8)  # 20..28, three seconds too long
    clock.done(called=17, finished=21)
    clock.done(called=called, finished=25)
    time.passes(1)  # the host was at nothing in particular
    clock.done(called=time.now, finished=32)
    assert clock.take() == {"step": 4 + 4 + 3, "input": 2 + 3, "save": 0, "compile": 10, "start": 5, "other": 1}
    _waited(clock, time, clock_lib.SAVE, 4)  # 29..33, while the step ran until 32
    clock.done(called=time.now, finished=35)
    assert clock.take() == {"step": 2, "input": 0, "save": 1, "compile": 0, "start": 0, "other": 0}


def test_waiting_gives_all_items_and_times_each():
    time = _Time()
    clock = clock_lib.StepTimer(time)

    def slow():
        for item in (None, 1):
            time.passes(2)
            yield item

    assert list(clock.waiting("input", slow())) == [None, 1]
    clock.done(called=time.now, finished=time.now)
    assert clock.take()["input"] == 4


def _step(step: int, steps: int, work: float, at: float) -> dict:
    return {"step": step, "steps": steps, "time": at, "seconds": {"step": work}}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"first": 0, "time": 0}, _step(10, 10, 30, 60), _step(20, 10, 30, 100)], 60 / 100),
        # Killed behind step 20, resumed behind 15 after a pause: half of the second ten is done again.
        (
            [{"first": 0, "time": 0}, _step(10, 10, 30, 60), _step(20, 10, 40, 100), {"first": 15, "time": 150},
             _step(25, 10, 30, 200)],
            (30 + 20 + 30) / 200,
        ),
        # Killed twice behind the same checkpoint: what the first start did counts once.
        (
            [{"first": 0, "time": 0}, _step(10, 10, 10, 20), {"first": 4, "time": 30}, _step(10, 6, 6, 50),
             {"first": 4, "time": 60}, _step(10, 6, 6, 100)],
            (4 + 6) / 100,
        ),
        ([{"first": 0, "time": 7}], 0),
    ],
)  # fmt: skip
def test_goodput(lines, expected):
    assert goodput(lines) == pytest.approx(expected)


def test_lines_outlive_a_start_that_was_cut_off(tmp_path):
    time = _Time()
    seconds = {"step": 6.0, "input": 2.0, "save": 0.0, "compile": 1.0, "start": 1.0, "other": 0.0}
    measure = FlopsReference(token=3e9, image=1e9, peak=1e12)
    about = {"devices": 8}
    one = Throughput(tmp_path, first=0, positions=100, flops_reference=None, about=about, now=time)
    time.passes(10)
    line = one(4, steps=4, tokens=320, images=8, seconds=seconds)
    one.close()
    assert (line["tokens_per_second"], line["positions_per_second"], line["images_per_second"]) == (40, 50, 1)
    assert line["step_seconds"] == 1.5 and line["goodput"] == 0.6 and "mfu" not in line
    with (tmp_path / "throughput.jsonl").open("a") as file:
        file.write('{"step": 5, "ti')
    time.passes(10)
    two = Throughput(tmp_path, first=2, positions=100, flops_reference=measure, about=about, now=time)
    time.passes(10)
    line = two(6, steps=4, tokens=320, images=8, seconds=seconds)
    two.close()
    assert line["goodput"] == pytest.approx((3 + 6) / 30)
    assert line["mfu"] == pytest.approx((320 * 3e9 + 8 * 1e9) / (8 * 1e12))
    texts = (tmp_path / "throughput.jsonl").read_text().splitlines()
    assert json.loads(texts[0]) == {"first": 0, "time": 0, "devices": 8} and len(texts) == 5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v5", 459), ("TPU v6 lite", 918), ("NVIDIA H100 80GB HBM3", 989),
     ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("cpu", None), ("Tesla T4", None)],
)  # fmt: skip
def test_peaks_that_are_known_and_no_others(kind, expected):
    assert flops_reference.peak_tflops(kind) == expected


@pytest.mark.parametrize(("stage", "per_token"), [("align", 59.8e9), ("instruct", 51.4e9)])
def test_costs_of_the_13b_model_are_those_counted_by_hand(stage, per_token):
    """2 FLOPs a parameter and token forward and for the input's gradient, 2 for what is trained; without layer 0's."""
    token, image = flops_reference.flops_per_token_and_image(config_lib.load(f"earthgpt_13b:{stage}"))
    assert token == pytest.approx(per_token, rel=0.01)
    assert 0.2e12 < image < 1e12  # DINOv2-L at 224 px 0.16, ConvNeXt-L at 512 px some 0.35, the projector 257 tokens
