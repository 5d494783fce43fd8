"""Signals to a process that is alone: what is noted, what is handed on, what stops at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from earthgpt_jax.common import processes
from earthgpt_jax.training.preemption import PreemptionSignal


@pytest.fixture
def heard():
    """Signals that come through to whoever was there before."""
    got: list[int] = []
    before = {number: signal.signal(number, lambda n, _: got.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_reached_unless_told(heard):
    with PreemptionSignal() as notice:
        assert not notice.reached(1)
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM], "handlers are back"


def test_sigterm_is_obeyed_behind_the_step_and_more_of_it_changes_nothing(heard, capfd):
    with PreemptionSignal() as notice:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert notice.reached(5)
        assert notice.status == 75
        assert notice.because().startswith("SIGTERM, 0.")
    assert heard == []
    assert capfd.readouterr().err.count("SIGTERM: saving behind this step") == 1


def test_ctrl_c_is_obeyed_behind_the_step_and_a_second_one_at_once(heard):
    with PreemptionSignal() as notice:
        signal.raise_signal(signal.SIGINT)
        assert notice.reached(5) and notice.status == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_behind_the_last_step_goes_to_whoever_is_next(heard):
    with PreemptionSignal():
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_a_signal_does_not_hide_an_error(heard):
    def run() -> None:
        with PreemptionSignal():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("loss")

    with pytest.raises(ValueError, match="loss"):
        run()
    assert heard == []


def test_outside_of_the_main_thread_nothing_is_noted(heard):
    def other() -> None:
        with PreemptionSignal() as notice:
            assert not notice.reached(1)
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]


def _worker(ready, *leave) -> None:
    processes.init_worker(*leave)
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize(("leave", "ends"), [((), True), ((signal.SIGTERM,), False)])
def test_workers_of_a_run_outlive_a_sigterm_to_all(leave, ends):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_worker, args=(ready, *leave))
    worker.start()
    assert ready.wait(120)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60 if ends else 0.3)
    assert worker.is_alive() is not ends
    worker.kill()
    worker.join()
